//! From etcd's messages to the store's vocabulary and back; checks of form.

use std::sync::Arc;

use bytes::Bytes;
use keelson_proto::etcd::etcdserverpb as pb;
use keelson_proto::etcd::mvccpb;
use keelson_store::{
    Compare, CompareOp, CompareTarget, DeleteRequest, KeyRange, KeyValue, Op, OpResponse, PutRequest, RangeRequest,
    RangeResponse, Revision, SortTarget, Txn,
};
use pb::compare::{CompareResult, CompareTarget as Target, TargetUnion};
use pb::range_request::{SortOrder, SortTarget as SortBy};
use pb::{request_op, response_op};

use super::error::Refusal;

/// `key` and `range_end` as an interval: no end is the key alone, an end of one zero byte is "from the key on".
pub fn key_range(key: Bytes, range_end: Bytes) -> KeyRange {
    match &range_end[..] {
        [] => KeyRange::Key(key),
        [0] => KeyRange::From(key),
        _ => KeyRange::Range(key, range_end),
    }
}

fn checked_range(key: Bytes, range_end: Bytes) -> Result<KeyRange, Refusal> {
    if key.is_empty() { Err(Refusal::EmptyKey) } else { Ok(key_range(key, range_end)) }
}

/// A read.
pub fn range(request: pb::RangeRequest) -> Result<RangeRequest, Refusal> {
    let order = SortOrder::try_from(request.sort_order).map_err(|_| Refusal::InvalidSortOption)?;
    let target = SortBy::try_from(request.sort_target).map_err(|_| Refusal::InvalidSortOption)?;
    Ok(RangeRequest {
        range: checked_range(request.key, request.range_end)?,
        revision: request.revision.max(0),
        limit: request.limit.max(0),
        keys_only: request.keys_only,
        count_only: request.count_only,
        sort: match target {
            SortBy::Key => SortTarget::Key,
            SortBy::Version => SortTarget::Version,
            SortBy::Create => SortTarget::Create,
            SortBy::Mod => SortTarget::Mod,
            SortBy::Value => SortTarget::Value,
        },
        descend: order == SortOrder::Descend,
        mod_revision: (request.min_mod_revision, request.max_mod_revision),
        create_revision: (request.min_create_revision, request.max_create_revision),
    })
}

/// A write.
pub fn put(request: pb::PutRequest) -> Result<PutRequest, Refusal> {
    if request.key.is_empty() {
        return Err(Refusal::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(Refusal::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Refusal::LeaseProvided);
    }
    Ok(PutRequest {
        key: request.key,
        value: request.value,
        lease: request.lease,
        prev_kv: request.prev_kv,
        ignore_value: request.ignore_value,
        ignore_lease: request.ignore_lease,
    })
}

/// A deletion.
pub fn delete(request: pb::DeleteRangeRequest) -> Result<DeleteRequest, Refusal> {
    Ok(DeleteRequest { range: checked_range(request.key, request.range_end)?, prev_kv: request.prev_kv })
}

/// A transaction with at most `max_ops` guards and operations a branch, nested ones each.
pub fn txn(request: pb::TxnRequest, max_ops: usize) -> Result<Txn, Refusal> {
    let most = request.compare.len().max(request.success.len()).max(request.failure.len());
    if most > max_ops {
        return Err(Refusal::TooManyOps);
    }
    let ops = |ops: Vec<pb::RequestOp>| {
        let ops = ops.into_iter().filter_map(|op| op.request);
        ops.map(|op| self::op(op, max_ops)).collect::<Result<Vec<_>, _>>()
    };
    Ok(Txn {
        compare: request.compare.into_iter().map(compare).collect::<Result<_, _>>()?,
        success: ops(request.success)?,
        failure: ops(request.failure)?,
    })
}

fn op(op: request_op::Request, max_ops: usize) -> Result<Op, Refusal> {
    Ok(match op {
        request_op::Request::RequestRange(request) => Op::Range(range(request)?),
        request_op::Request::RequestPut(request) => Op::Put(put(request)?),
        request_op::Request::RequestDeleteRange(request) => Op::Delete(delete(request)?),
        request_op::Request::RequestTxn(request) => Op::Txn(txn(request, max_ops)?),
    })
}

fn compare(compare: pb::Compare) -> Result<Compare, Refusal> {
    let range = checked_range(compare.key, compare.range_end)?;
    let number = match &compare.target_union {
        Some(
            TargetUnion::Version(number)
            | TargetUnion::CreateRevision(number)
            | TargetUnion::ModRevision(number)
            | TargetUnion::Lease(number),
        ) => *number,
        _ => 0,
    };
    let target = match Target::try_from(compare.target).unwrap_or(Target::Version) {
        Target::Version => CompareTarget::Version(number),
        Target::Create => CompareTarget::CreateRevision(number),
        Target::Mod => CompareTarget::ModRevision(number),
        Target::Lease => CompareTarget::Lease(number),
        Target::Value => match compare.target_union {
            Some(TargetUnion::Value(value)) => CompareTarget::Value(value),
            _ => CompareTarget::Value(Bytes::new()),
        },
    };
    let op = match CompareResult::try_from(compare.result).unwrap_or(CompareResult::Equal) {
        CompareResult::Equal => CompareOp::Equal,
        CompareResult::Greater => CompareOp::Greater,
        CompareResult::Less => CompareOp::Less,
        CompareResult::NotEqual => CompareOp::NotEqual,
    };
    Ok(Compare { range, target, op })
}

/// A key with its value, sharing their bytes.
pub fn key_value(kv: &KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key.clone(),
        value: kv.value.clone(),
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
    }
}

fn key_values(kvs: &[Arc<KeyValue>]) -> Vec<mvccpb::KeyValue> {
    kvs.iter().map(|kv| key_value(kv)).collect()
}

/// Answer to a read.
pub fn range_response(header: Option<pb::ResponseHeader>, response: &RangeResponse) -> pb::RangeResponse {
    pb::RangeResponse { header, kvs: key_values(&response.kvs), more: response.more, count: response.count }
}

/// Answer to a deletion.
pub fn delete_response(
    header: Option<pb::ResponseHeader>,
    deleted: i64,
    previous: &[Arc<KeyValue>],
) -> pb::DeleteRangeResponse {
    pb::DeleteRangeResponse { header, deleted, prev_kvs: key_values(previous) }
}

/// Answers of a transaction's operations; their headers carry the revision only.
pub fn op_responses(revision: Revision, responses: &[OpResponse]) -> Vec<pb::ResponseOp> {
    responses.iter().map(|response| pb::ResponseOp { response: Some(op_response(revision, response)) }).collect()
}

fn op_response(revision: Revision, response: &OpResponse) -> response_op::Response {
    let header = Some(pb::ResponseHeader { revision, ..pb::ResponseHeader::default() });
    match response {
        OpResponse::Range(response) => response_op::Response::ResponseRange(range_response(header, response)),
        OpResponse::Put(previous) => response_op::Response::ResponsePut(pb::PutResponse {
            header,
            prev_kv: previous.as_ref().map(|kv| key_value(kv)),
        }),
        OpResponse::Delete(deleted, previous) => {
            response_op::Response::ResponseDeleteRange(delete_response(header, *deleted, previous))
        }
        OpResponse::Txn(succeeded, responses) => response_op::Response::ResponseTxn(pb::TxnResponse {
            header: None,
            succeeded: *succeeded,
            responses: op_responses(revision, responses),
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    #[test]
    fn intervals() {
        let b = Bytes::from_static;
        for (key, end, want) in [
            (&b"a"[..], &b""[..], KeyRange::Key(b(b"a"))),
            (b"a", b"b", KeyRange::Range(b(b"a"), b(b"b"))),
            (b"a", b"\0", KeyRange::From(b(b"a"))),
            (b"\0", b"\0", KeyRange::From(b(b"\0"))),
        ] {
            assert_eq!(key_range(Bytes::copy_from_slice(key), Bytes::copy_from_slice(end)), want);
        }
    }

    proptest! {
        /// Whatever a client sends becomes something that the store accepts or refuses.
        #[test]
        fn any_message_is_converted_or_refused(bytes in vec(any::<u8>(), 0..200), shape in 0..4_u8) {
            let bytes = Bytes::from(bytes);
            // Random bytes seldom make a message by themselves: they are also put into its fields.
            if let Ok(request) = pb::TxnRequest::decode(bytes.clone())
                && let Ok(txn) = txn(request, 16)
            {
                let _ = keelson_store::check(&txn);
            }
            let (key, range_end) = (bytes.slice(..bytes.len() / 3), bytes.slice(bytes.len() / 3..bytes.len() / 2));
            let number = i64::from(bytes.first().copied().unwrap_or(0)) - 128;
            let range = pb::RangeRequest {
                key: key.clone(), range_end: range_end.clone(), revision: number, limit: -number,
                sort_order: i32::from(shape), sort_target: number as i32, ..Default::default()
            };
            let delete = pb::DeleteRangeRequest { key: key.clone(), range_end: range_end.clone(), prev_kv: true };
            let put = pb::PutRequest { key: key.clone(), value: bytes.clone(), lease: number, ..Default::default() };
            let mut nested = pb::TxnRequest {
                compare: vec![pb::Compare {
                    key, range_end, result: i32::from(shape), target: number as i32, target_union: None,
                }],
                success: vec![
                    request_op::Request::RequestRange(range),
                    request_op::Request::RequestDeleteRange(delete),
                    request_op::Request::RequestPut(put),
                ].into_iter().map(|request| pb::RequestOp { request: Some(request) }).collect(),
                failure: vec![pb::RequestOp { request: None }],
            };
            for _ in 0..shape {
                let inner = request_op::Request::RequestTxn(nested);
                nested = pb::TxnRequest { success: vec![pb::RequestOp { request: Some(inner) }], ..Default::default() };
            }
            if let Ok(txn) = txn(nested, 16) {
                let _ = keelson_store::check(&txn);
            }
        }
    }

    #[test]
    fn malformed_requests_are_refused() {
        assert_eq!(range(pb::RangeRequest::default()), Err(Refusal::EmptyKey));
        let sorted = pb::RangeRequest { key: "a".into(), sort_order: 9, ..Default::default() };
        assert_eq!(range(sorted), Err(Refusal::InvalidSortOption));
        let base = pb::PutRequest { key: "a".into(), value: "v".into(), lease: 1, ..Default::default() };
        assert_eq!(put(pb::PutRequest { key: Bytes::new(), ..base.clone() }), Err(Refusal::EmptyKey));
        assert_eq!(put(pb::PutRequest { ignore_value: true, ..base.clone() }), Err(Refusal::ValueProvided));
        assert_eq!(put(pb::PutRequest { ignore_lease: true, ..base.clone() }), Err(Refusal::LeaseProvided));
        assert_eq!(delete(pb::DeleteRangeRequest::default()), Err(Refusal::EmptyKey));
        let empty = pb::Compare::default();
        let request = pb::TxnRequest { compare: vec![empty], ..Default::default() };
        assert_eq!(txn(request.clone(), 1), Err(Refusal::EmptyKey));
        assert_eq!(txn(request, 0), Err(Refusal::TooManyOps));
    }
}
