//! The verbs: one file each, serving every row of the resource table.

pub mod apply;
pub mod create;
pub mod delete;
pub mod get;
pub mod list;
pub mod patch;
pub mod stream;
pub mod update;
pub mod watch;

use http::{HeaderMap, Response};
use keelson_client::{Body, Fence};
use keelson_machinery::decode::Decoded;
use keelson_machinery::status::Status;
use serde_json::Value;

use crate::access::{Admission, Attributes, Operation, UserInfo};
use crate::negotiate::{self, Accepted, Format};
use crate::request::ResourceRequest;
use crate::{body, respond, table};

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
    /// Whether the write counts a generation even where it changes nothing that is stored.
    pub counts_anyway: bool,
}

impl Call<'_> {
    /// Whether nothing is to be stored; other values than `All` were refused with the options.
    pub fn dry_run(&self) -> Result<bool, Status> {
        Ok(self.request.query.all("dryRun").iter().any(|v| v == "All"))
    }

    /// What admission is shown of a write: of a creation, if there is no old object.
    pub(crate) fn admission<'c>(
        &'c self,
        name: &'c str,
        object: &'c mut Value,
        old: Option<&'c Value>,
        dry_run: bool,
        warnings: &'c mut Vec<String>,
    ) -> Admission<'c> {
        let request = self.request;
        Admission {
            operation: if old.is_some() { Operation::Update } else { Operation::Create },
            def: request.def,
            subresource: if old.is_some() { &request.subresource } else { "" },
            namespace: &request.namespace,
            name,
            user: self.user,
            object: Some(object),
            old,
            dry_run,
            warnings,
        }
    }

    /// One object as the client wants it.
    pub fn answer(&self, code: u16, object: &Value, warnings: &[String]) -> Result<Response<Body>, Status> {
        let (def, accepted) = (self.request.def, self.accepted()?);
        // Only the row's own objects have other forms; a Status or Scale is answered as it is.
        let converted = (accepted.format != Format::Object && table::is_shown(def, object))
            .then(|| table::single(def, accepted, object, &self.request.query))
            .transpose()?;
        let mut response = respond::object(code, accepted.media, converted.as_ref().unwrap_or(object), self.pretty())?;
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

    /// The form of the answer.
    pub fn accepted(&self) -> Result<Accepted, Status> {
        negotiate::negotiate(self.headers, self.request.def, self.request.verb)
    }

    /// Whether JSON is written for people.
    pub fn pretty(&self) -> bool {
        negotiate::is_pretty(self.headers, self.request.query.get("pretty"))
    }

    /// The object in the body.
    pub fn object(&self) -> Result<Decoded, Status> {
        let def = self.request.def;
        let own = (def.api_version(), def.kind);
        let subresource = def.subresources.iter().find(|s| s.name == self.request.subresource);
        let (api_version, kind) = match subresource.map(|s| s.kind) {
            Some((_, "", kind)) => (own.0, if kind.is_empty() { own.1 } else { kind }),
            Some((group, version, kind)) => (format!("{group}/{version}"), kind),
            None => own,
        };
        let expected = (api_version.as_str(), kind);
        let decoded = if def.custom && kind == def.kind {
            let lenient = self.request.query.get("fieldValidation") == Some("Ignore");
            body::custom_object(self.headers, self.body, expected, lenient)?
        } else {
            body::object(self.headers, self.body, expected)?
        };
        crate::audit::brought(&decoded.value);
        Ok(decoded)
    }

    /// What the user needs to be allowed for another verb on the same object.
    pub fn attributes(&self, verb: &str) -> Attributes {
        let request = self.request;
        Attributes {
            verb: verb.into(),
            group: request.def.group.into(),
            version: request.def.version.into(),
            resource: request.def.plural.into(),
            namespace: request.namespace.clone(),
            name: request.name.clone(),
            ..Attributes::default()
        }
    }

    /// 404 for the object that the request names.
    pub fn not_found(&self) -> Status {
        Status::not_found(self.request.def.group, self.request.def.plural, &self.request.name)
    }
}
