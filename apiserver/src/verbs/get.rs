//! GET of one object: the stored bytes with the resource version spliced in.

use http::Response;
use keelson_client::Body;
use keelson_machinery::status::Status;

use super::Call;
use crate::objects::Objects;
use crate::table::{self, Format};
use crate::{ApiServer, body};

impl ApiServer {
    /// Serves one object.
    pub(crate) async fn get(&self, call: &Call<'_>) -> Result<Response<Body>, Status> {
        self.fresh(call.request.query.get("resourceVersion")).await?;
        let request = call.request;
        let view = self.objects.kv.view();
        let kv =
            view.get(&Objects::key(request.def, &request.namespace, &request.name)).ok_or_else(|| call.not_found())?;
        if table::negotiate(call.headers)? != Format::Json {
            return call.answer(200, &request.value(kv)?, &[]);
        }
        let stored = request.stored(kv)?;
        let mut json = Vec::with_capacity(stored.json.len() + 40);
        stored.write_json(kv.mod_revision, &mut json);
        let mut response = body::json(200, json);
        call.deprecated(&mut response);
        Ok(response)
    }
}
