//! Alarms: replicated with the settings, raised by the size of the data, cleared when there is room again.

use bytes::Bytes;
use keelson_proto::etcd::etcdserverpb::{AlarmMember, AlarmType};
use keelson_store::{SettingsChange, View};
use tonic::Status;

use super::Front;
use super::error::of_kv;

/// Names of the settings that are alarms: member id and kind follow.
const PREFIX: &[u8] = b"alarm/";

fn name(member: u64, kind: AlarmType) -> Bytes {
    format!("alarm/{member:016x}/{}", kind.as_str_name()).into()
}

/// Name of the setting that says that a member's data is damaged.
pub(crate) fn corrupt_name(member: u64) -> Bytes {
    name(member, AlarmType::Corrupt)
}

/// The settings that are alarms, and whose.
pub(crate) fn names(view: &View) -> Vec<(Bytes, u64)> {
    let all = view.settings(PREFIX).map(|(name, _)| name.clone());
    all.filter_map(|name| Some((parse(&name)?.member_id, name))).map(|(id, name)| (name, id)).collect()
}

fn parse(name: &[u8]) -> Option<AlarmMember> {
    let text = std::str::from_utf8(name.strip_prefix(PREFIX)?).ok()?;
    let (member, kind) = text.split_once('/')?;
    let kind = AlarmType::from_str_name(kind)?;
    Some(AlarmMember { member_id: u64::from_str_radix(member, 16).ok()?, alarm: kind.into() })
}

/// The active alarms of a member (0: of all) and a kind (none: of all kinds).
pub fn list(front: &Front, member: u64, kind: AlarmType) -> Vec<AlarmMember> {
    let view = front.kv.view();
    let all = view.settings(PREFIX).filter_map(|(name, _)| parse(name));
    let wanted = |alarm: &AlarmMember| {
        (member == 0 || alarm.member_id == member) && (kind == AlarmType::None || alarm.alarm() == kind)
    };
    all.filter(wanted).collect()
}

/// Raises an alarm; answers with it.
pub async fn activate(front: &Front, member: u64, kind: AlarmType) -> Result<Vec<AlarmMember>, Status> {
    if kind == AlarmType::None {
        return Ok(Vec::new());
    }
    let member = if member == 0 { front.cluster.member_id() } else { member };
    let writes = vec![(name(member, kind), Some(Bytes::new()))];
    front.kv.change_settings(SettingsChange { guards: Vec::new(), writes }).await.map_err(of_kv)?;
    Ok(vec![AlarmMember { member_id: member, alarm: kind.into() }])
}

/// Clears alarms; answers with those that were active.
pub async fn deactivate(front: &Front, member: u64, kind: AlarmType) -> Result<Vec<AlarmMember>, Status> {
    let found = list(front, member, kind);
    if !found.is_empty() {
        let writes = found.iter().map(|alarm| (name(alarm.member_id, alarm.alarm()), None)).collect();
        front.kv.change_settings(SettingsChange { guards: Vec::new(), writes }).await.map_err(of_kv)?;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_member_and_kind() {
        for kind in [AlarmType::Nospace, AlarmType::Corrupt] {
            let alarm = parse(&name(0xab12, kind)).expect("parses");
            assert_eq!((alarm.member_id, alarm.alarm()), (0xab12, kind));
        }
        for bad in [&b"alarm/"[..], b"alarm/x/NOSPACE", b"alarm/1/OTHER", b"user/1"] {
            assert_eq!(parse(bad), None);
        }
    }
}
