//! The verbs: one file each, serving every row of the resource table.

pub mod apply;
pub mod create;
pub mod delete;
pub mod get;
pub mod list;
pub mod patch;
pub mod update;
pub mod watch;

use http::{HeaderMap, Response};
use keelson_client::{Body, Fence};
use keelson_machinery::status::Status;
use serde_json::Value;

use crate::access::UserInfo;
use crate::request::ResourceRequest;
use crate::table::Format;
use crate::{body, table};

/// What a verb gets to see of a request.
pub struct Call<'a> {
    /// The request's line.
    pub request: &'a ResourceRequest,
    /// Who asks.
    pub user: &'a UserInfo,
    /// Headers.
    pub headers: &'a HeaderMap,
    /// Body.
    pub body: &'a [u8],
    /// The caller's fence, if it is a fenced component.
    pub fence: Option<&'a Fence>,
}

impl Call<'_> {
    /// Whether nothing is to be stored; other values than `All` were refused with the options.
    pub fn dry_run(&self) -> Result<bool, Status> {
        Ok(self.request.query.all("dryRun").iter().any(|v| v == "All"))
    }

    /// One object as the client wants it.
    pub fn answer(&self, code: u16, object: &Value, warnings: &[String]) -> Result<Response<Body>, Status> {
        let mut response = match table::negotiate(self.headers)? {
            Format::Json => body::value(code, object),
            format => body::value(code, &table::single(self.request.def, format, object, &self.request.query)),
        };
        body::warn(&mut response, warnings);
        Ok(response)
    }

    /// 404 for the object that the request names.
    pub fn not_found(&self) -> Status {
        Status::not_found(self.request.def.group, self.request.def.plural, &self.request.name)
    }
}
