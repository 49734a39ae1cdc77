//! The choice of an answer's form from the Accept header: media type, and the object itself, a table or only metadata.

use http::{HeaderMap, header};
use keelson_machinery::protobuf;
use keelson_machinery::resource::ResourceDef;
use keelson_machinery::status::{Details, Status};

/// The media types that bodies may have, as refusals list them.
pub const MEDIA_TYPES: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
const STREAMS: &str = "application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch";
/// Most choices of a header that are looked at.
const MAX_CHOICES: usize = 64;

/// How an answer is encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Media {
    /// JSON.
    #[default]
    Json,
    /// YAML.
    Yaml,
    /// Kubernetes' protobuf.
    Protobuf,
}

/// What an answer consists of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// The object.
    #[default]
    Object,
    /// A table with its printer columns.
    Table,
    /// Only the metadata of one object.
    Metadata,
    /// Only the metadata of the objects of a list.
    MetadataList,
}

/// What a client accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// How it is encoded.
    pub media: Media,
    /// What it consists of.
    pub format: Format,
    /// `meta.k8s.io/v1beta1` for tables and metadata, not `v1`.
    pub beta: bool,
}

impl Accepted {
    /// `apiVersion` of tables and metadata.
    pub fn meta_version(self) -> &'static str {
        if self.beta { "meta.k8s.io/v1beta1" } else { "meta.k8s.io/v1" }
    }
}

impl Media {
    /// The content type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
            Self::Protobuf => protobuf::MEDIA_TYPE,
        }
    }

    /// The content type of a watch.
    pub fn stream_type(self) -> &'static str {
        match self {
            Self::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
            _ => "application/json",
        }
    }

    /// What a name stands for.
    pub fn matching(name: &str) -> Option<Self> {
        Some(match name {
            "application/json" | "*/*" | "application/*" => Self::Json,
            "application/yaml" => Self::Yaml,
            protobuf::MEDIA_TYPE => Self::Protobuf,
            _ => return None,
        })
    }
}

/// The header, or that anything is accepted.
pub fn accept(headers: &HeaderMap) -> &str {
    headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).map_or("*/*", |v| if v.is_empty() { "*/*" } else { v })
}

/// A media type with its parameters.
pub type Choice<'a> = (&'a str, Vec<(&'a str, &'a str)>);

/// The choices of a header, best first.
pub fn choices(header: &str) -> Vec<Choice<'_>> {
    let read = |choice| {
        let mut parts = str::split(choice, ';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let parameters: Vec<(&str, &str)> = parts.filter_map(|p| p.split_once('=')).collect();
        let quality = parameters.iter().rfind(|(k, _)| *k == "q").map(|(_, v)| v.parse().unwrap_or(0.0));
        (quality.unwrap_or(1.0), (name, parameters))
    };
    let mut list: Vec<(f32, Choice<'_>)> = header.split(',').take(MAX_CHOICES).map(read).collect();
    // What is named goes before what is not, whatever the qualities: no order that a sort could keep. So each goes forward
    // past those that it beats until one stands that it does not.
    for end in 1..list.len() {
        let mut at = end;
        while at > 0 && beats(&list[at], &list[at - 1]) {
            list.swap(at, at - 1);
            at -= 1;
        }
    }
    list.into_iter().map(|(_, choice)| choice).collect()
}

fn beats(one: &(f32, Choice<'_>), other: &(f32, Choice<'_>)) -> bool {
    let open = |(_, (name, _)): &(f32, Choice<'_>)| (name.starts_with('*'), name.ends_with('*'));
    let (mine, theirs) = (open(one), open(other));
    one.0 > other.0 || (!mine.0 && theirs.0) || (!mine.1 && theirs.1)
}

/// What one choice asks for; `None` if it cannot be had.
fn choice(name: &str, parameters: &[(&str, &str)], known: bool, streams: bool) -> Option<Accepted> {
    let media = Media::matching(name)?;
    let parameter = |key: &str| parameters.iter().rfind(|(k, _)| *k == key).map_or("", |(_, v)| *v);
    let stream = parameter("stream");
    if !matches!(stream, "" | "watch") || (streams || stream == "watch") && media == Media::Yaml {
        return None;
    }
    if !matches!(parameter("sv"), "" | "v1") {
        return None;
    }
    let converted = parameters.iter().any(|(key, _)| matches!(*key, "as" | "g" | "v"));
    let format = match parameter("as") {
        "" if !converted => Format::Object,
        "Table" => Format::Table,
        "PartialObjectMetadata" => Format::Metadata,
        "PartialObjectMetadataList" => Format::MetadataList,
        _ => return None,
    };
    let beta = parameter("v") == "v1beta1";
    if format != Format::Object && (parameter("g") != "meta.k8s.io" || !(beta || parameter("v") == "v1")) {
        return None;
    }
    let encodable = match format {
        Format::Object => known,
        Format::Table => false,
        Format::Metadata | Format::MetadataList => true,
    };
    (media != Media::Protobuf || encodable).then_some(Accepted { media, format, beta })
}

/// Chooses the form of an answer about a row's objects; `streams` for a watch.
pub fn negotiate(headers: &HeaderMap, def: &ResourceDef, streams: bool) -> Result<Accepted, Status> {
    let header = accept(headers);
    // Two layers refuse upstream, each with words of its own: one that knows only names, and one that knows parameters.
    let named = |part: &str| {
        let name = part.split(';').next().unwrap_or_default().trim();
        name == "*/*" || name != "application/*" && Media::matching(name).is_some()
    };
    if !header.split(',').any(named) {
        let message = format!("406: Not Acceptable\n\nAvailable representations: {MEDIA_TYPES}, {STREAMS}");
        return Err(Status { message, details: Some(Box::<Details>::default()), ..Status::not_acceptable("") });
    }
    let known = protobuf::is_known(&def.api_version(), def.kind);
    choices(header)
        .iter()
        .find_map(|(name, parameters)| choice(name, parameters, known, streams))
        .ok_or_else(|| Status::not_acceptable(if streams { STREAMS } else { MEDIA_TYPES }))
}

/// Refuses a client that does not accept the only media type that there is.
pub fn exactly(headers: &HeaderMap, media: &str) -> Result<(), Status> {
    let found = choices(accept(headers)).iter().any(|(name, _)| matches!(*name, "*/*") || *name == media);
    let message = format!("406: Not Acceptable\n\nAvailable representations: {media}");
    let refusal = || Status { message, details: Some(Box::<Details>::default()), ..Status::not_acceptable("") };
    if found { Ok(()) } else { Err(refusal()) }
}

/// The media type for a refusal, which is a Status: what the header names first that can be had, else JSON.
pub fn media_of_refusal(headers: &HeaderMap) -> Media {
    let choices = choices(accept(headers));
    choices.iter().find_map(|(name, parameters)| choice(name, parameters, true, false)).unwrap_or_default().media
}

/// Whether JSON is written for people: asked for (the header's or the query's `pretty`), or the client is one that people type.
pub fn is_pretty(headers: &HeaderMap, asked: Option<&str>) -> bool {
    let best =
        choices(accept(headers)).into_iter().find(|(name, parameters)| choice(name, parameters, true, false).is_some());
    if best
        .is_some_and(|(_, parameters)| parameters.iter().rfind(|(key, _)| *key == "pretty").is_some_and(|p| p.1 == "1"))
    {
        return true;
    }
    match asked {
        Some(value) => matches!(value, "1" | "t" | "T" | "true" | "True" | "TRUE"),
        None => {
            let agent = headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
            ["curl", "Wget", "Mozilla/5.0"].iter().any(|name| agent.starts_with(name))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_machinery::resources::find;

    fn chosen(header: &str, streams: bool) -> Result<Accepted, String> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, header.parse().unwrap());
        let def = find("", "v1", "configmaps").unwrap();
        negotiate(&headers, def, streams).map_err(|status| status.message)
    }

    #[test]
    fn the_best_choice_that_can_be_had_is_taken() {
        use Format::{Metadata, Object, Table};
        use Media::{Json, Protobuf, Yaml};
        let table = "as=Table;v=v1;g=meta.k8s.io";
        for (header, media, format) in [
            ("*/*", Json, Object),
            ("application/vnd.kubernetes.protobuf,application/json", Protobuf, Object),
            ("application/json;q=0.5,application/yaml", Yaml, Object),
            ("text/html;q=0.9,application/yaml;q=0.5", Yaml, Object),
            (&format!("application/json;{table},application/json"), Json, Table),
            (&format!("application/vnd.kubernetes.protobuf;{table},application/json;{table}"), Json, Table),
            ("application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;v=v1;g=meta.k8s.io", Protobuf, Metadata),
            ("application/json;as=Table;v=v9;g=meta.k8s.io,application/json", Json, Object),
            ("*/*, application/yaml;q=0.5", Yaml, Object),
            ("application/json;q=0", Json, Object),
            ("application/json;sv=v1", Json, Object),
        ] {
            assert_eq!(chosen(header, false), Ok(Accepted { media, format, beta: false }), "{header}");
        }
        assert!(chosen("application/json;as=Table;v=v1beta1;g=meta.k8s.io", false).unwrap().beta);
        assert_eq!(chosen("application/vnd.kubernetes.protobuf;stream=watch", true).unwrap().media, Protobuf);
    }

    #[test]
    fn what_cannot_be_had_is_refused() {
        for (header, streams, words) in [
            ("text/html", false, "406: Not Acceptable"),
            ("application/cbor", false, "406: Not Acceptable"),
            ("application/json;as=Thing;v=v1;g=meta.k8s.io", false, "only the following media types are accepted"),
            ("application/json;as=Table;v=v9;g=meta.k8s.io", false, "only the following media types are accepted"),
            (
                "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io",
                false,
                "only the following media types are accepted",
            ),
            ("application/json;v=v1", false, "only the following media types are accepted"),
            ("application/json;sv=v2", false, "only the following media types are accepted"),
            ("application/yaml;stream=watch", false, "only the following media types are accepted"),
            ("application/yaml", true, "only the following media types are accepted"),
        ] {
            let why = chosen(header, streams).unwrap_err();
            assert!(why.starts_with(words), "{header}: {why}");
        }
    }
}
