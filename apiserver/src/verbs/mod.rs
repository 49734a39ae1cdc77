//! The verbs: one file each, serving every row of the resource table.

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
    /// `dryRun=All`; other values are refused.
    pub fn dry_run(&self) -> Result<bool, Status> {
        match self.request.query.all("dryRun") {
            [] => Ok(false),
            [all] if all == "All" => Ok(true),
            [none] if none.is_empty() => Ok(false),
            other => Err(Status::bad_request(format!(
                "dryRun: Unsupported value: {:?}: supported values: \"All\"",
                other.first().map(String::as_str).unwrap_or_default()
            ))),
        }
    }

    /// One object as the client wants it.
    pub fn answer(&self, code: u16, object: &Value, warnings: &[String]) -> Result<Response<Body>, Status> {
        let mut response = match table::negotiate(self.headers)? {
            Format::Json => body::value(code, object),
            format => body::value(code, &table::single(self.request.def, format, object, &self.request.query)),
        };
        self.deprecated(&mut response);
        body::warn(&mut response, warnings);
        Ok(response)
    }

    /// Warns of a deprecated version.
    pub fn deprecated(&self, response: &mut Response<Body>) {
        if let Some(custom) = &self.request.custom
            && !custom.version().warning.is_empty()
        {
            body::warn(response, std::slice::from_ref(&custom.version().warning));
        }
    }

    /// 404 for the object that the request names.
    pub fn not_found(&self) -> Status {
        Status::not_found(self.request.def.group, self.request.def.plural, &self.request.name)
    }
}
