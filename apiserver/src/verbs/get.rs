//! GET of one object: the stored bytes with the resource version spliced in.

use http::Response;
use keelson_client::Body;
use keelson_machinery::protobuf;
use keelson_machinery::status::Status;

use super::Call;
use crate::negotiate::{Accepted, Format, Media};
use crate::objects::Objects;
use crate::{ApiServer, body, respond};

impl ApiServer {
    /// Serves one object.
    pub(crate) async fn get(&self, call: &Call<'_>) -> Result<Response<Body>, Status> {
        self.fresh(call.request.query.get("resourceVersion")).await?;
        let request = call.request;
        let view = self.objects.kv.view();
        let kv =
            view.get(&Objects::key(request.def, &request.namespace, &request.name)).ok_or_else(|| call.not_found())?;
        let accepted = call.accepted()?;
        let stored = request.stored(kv)?;
        if accepted.format == Format::Object && accepted.media == Media::Protobuf {
            let encoded =
                protobuf::encode_stored(&request.def.api_version(), request.def.kind, &stored, kv.mod_revision)
                    .map_err(|e| Status::internal(&e.to_string()))?;
            return Ok(respond::bytes(200, protobuf::MEDIA_TYPE, encoded));
        }
        if accepted != Accepted::default() || call.pretty() {
            return call.answer(200, &request.value(kv)?, &[]);
        }
        let mut json = Vec::with_capacity(stored.json.len() + 40);
        stored.write_json(kv.mod_revision, &mut json);
        let mut response = body::json(200, json);
        call.deprecated(&mut response);
        Ok(response)
    }
}
