//! The choice of an answer's form from the Accept header: media type, and the object itself, a table or only metadata.

use http::{HeaderMap, HeaderValue, header};
use keelson_machinery::features::{self, Feature};
use keelson_machinery::resource::ResourceDef;
use keelson_machinery::status::{Details, Status};
use keelson_machinery::{cbor, protobuf};

/// The media types that bodies of any server may have.
pub const MEDIA_TYPES: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
const STREAMS: &str = "application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch";

/// Whether bodies may be CBOR, by the gate of the process.
pub fn is_cbor_open() -> bool {
    features::is_open(Feature::CborServingAndStorage)
}

/// The media types that bodies may have, as refusals list them; `cbor` says whether that is one.
pub fn media_types(cbor: bool) -> String {
    format!("{MEDIA_TYPES}{}", if cbor { ", application/cbor" } else { "" })
}

fn streams(cbor: bool) -> String {
    format!("{STREAMS}{}", if cbor { ", application/cbor;stream=watch" } else { "" })
}

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
    /// CBOR, if its gate is open.
    Cbor,
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
            Self::Cbor => cbor::MEDIA_TYPE,
        }
    }

    /// The content type of a watch.
    pub fn stream_type(self) -> &'static str {
        match self {
            Self::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
            // Whoever accepts one item gets as many as there are, under the name that says so, as upstream does.
            Self::Cbor => cbor::SEQUENCE_TYPE,
            _ => "application/json",
        }
    }

    /// What a name stands for where resources are served.
    fn of_resource(name: &str, cbor: bool) -> Option<Self> {
        if cbor && name == cbor::MEDIA_TYPE { Some(Self::Cbor) } else { Self::matching(name) }
    }

    /// What a name stands for everywhere: of CBOR that cannot be said.
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

/// What can be had.
#[derive(Clone, Copy)]
struct Can<'a> {
    /// The row whose objects are wanted, of which not all have a form in protobuf; a Status has one.
    def: Option<&'a ResourceDef>,
    /// They are wanted as a stream.
    stream: bool,
    /// There is CBOR.
    cbor: bool,
}

/// What one choice asks for; `None` if it cannot be had.
fn choice(name: &str, parameters: &[(&str, &str)], can: Can<'_>) -> Option<Accepted> {
    let Can { def, stream: streams, cbor } = can;
    let media = Media::of_resource(name, cbor)?;
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
    let has = match media {
        Media::Protobuf => match format {
            Format::Object => def.is_none_or(|def| protobuf::is_known(&def.api_version(), def.kind)),
            Format::Table => false,
            Format::Metadata | Format::MetadataList => true,
        },
        Media::Cbor => format != Format::Table,
        Media::Json | Media::Yaml => true,
    };
    has.then_some(Accepted { media, format, beta })
}

/// Chooses the form of the answer to a verb about a row's objects.
pub fn negotiate(headers: &HeaderMap, def: &ResourceDef, verb: &str) -> Result<Accepted, Status> {
    negotiate_with(headers, def, verb, is_cbor_open())
}

/// The same, on a server that has CBOR or has not.
fn negotiate_with(headers: &HeaderMap, def: &ResourceDef, verb: &str, cbor: bool) -> Result<Accepted, Status> {
    let (header, stream) = (accept(headers), verb == "watch");
    // Two layers refuse upstream, each with words of its own: one that knows only names, through which requests for custom
    // resources do not go, and one that knows parameters.
    let named = |part: &str| {
        let name = part.split(';').next().unwrap_or_default().trim();
        name == "*/*" || name != "application/*" && Media::of_resource(name, cbor).is_some()
    };
    if !def.custom && !header.split(',').any(named) {
        let types = media_types(cbor);
        return Err(unavailable(&match verb {
            "list" | "watch" => format!("{types}, {}", streams(cbor)),
            _ => types,
        }));
    }
    let can = Can { def: Some(def), stream, cbor };
    choices(header)
        .iter()
        .find_map(|(name, parameters)| choice(name, parameters, can))
        .ok_or_else(|| Status::not_acceptable(&if stream { streams(cbor) } else { media_types(cbor) }))
}

/// Refuses a client that accepts neither text nor what refusals may be.
pub fn text(headers: &HeaderMap) -> Result<(), Status> {
    text_with(headers, is_cbor_open())
}

fn text_with(headers: &HeaderMap, cbor: bool) -> Result<(), Status> {
    let known = |name: &str| matches!(name, "*/*" | "text/plain") || Media::of_resource(name, cbor).is_some();
    let found = choices(accept(headers)).iter().any(|(name, _)| *name != "application/*" && known(name));
    if found { Ok(()) } else { Err(unavailable(&format!("text/plain, {}", media_types(cbor)))) }
}

/// The refusal of the layer that knows only names.
fn unavailable(types: &str) -> Status {
    let message = format!("406: Not Acceptable\n\nAvailable representations: {types}");
    Status { message, details: Some(Box::<Details>::default()), ..Status::not_acceptable("") }
}

/// Refuses a client that names none of the media types of discovery, whatever their parameters.
pub fn by_name(headers: &HeaderMap) -> Result<(), Status> {
    let known = |name: &str| name == "*/*" || name != "application/*" && Media::matching(name).is_some();
    let found = choices(accept(headers)).iter().any(|(name, _)| known(name));
    if found { Ok(()) } else { Err(unavailable(MEDIA_TYPES)) }
}

/// Refuses a client that does not accept the only media type that there is.
pub fn exactly(headers: &HeaderMap, media: &str) -> Result<(), Status> {
    let found = choices(accept(headers)).iter().any(|(name, _)| matches!(*name, "*/*") || *name == media);
    if found { Ok(()) } else { Err(unavailable(media)) }
}

/// The media type for a refusal, which is a Status: what the header names first that can be had, else JSON. What stands before
/// the resources refuses in no CBOR.
pub fn media_of_refusal(headers: &HeaderMap) -> Media {
    media_of_status(headers, false)
}

/// The same, if only that header is left of the request.
pub fn media_of_refused(accept: Option<&HeaderValue>) -> Media {
    let headers: HeaderMap = accept.map(|value| (header::ACCEPT, value.clone())).into_iter().collect();
    media_of_refusal(&headers)
}

/// The media type for the refusal of a request that came as far as its resource.
pub fn media_of_resources_refusal(headers: &HeaderMap) -> Media {
    media_of_status(headers, is_cbor_open())
}

fn media_of_status(headers: &HeaderMap, cbor: bool) -> Media {
    let can = Can { def: None, stream: false, cbor };
    let choices = choices(accept(headers));
    choices.iter().find_map(|(name, parameters)| choice(name, parameters, can)).unwrap_or_default().media
}

/// Whether JSON is written for people: asked for (the header's or the query's `pretty`), or the client is one that people type.
pub fn is_pretty(headers: &HeaderMap, asked: Option<&str>) -> bool {
    let can = Can { def: None, stream: false, cbor: is_cbor_open() };
    let best = choices(accept(headers)).into_iter().find(|(name, parameters)| choice(name, parameters, can).is_some());
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
    use proptest::prelude::*;

    fn chosen(header: &str, streams: bool) -> Result<Accepted, String> {
        chosen_with(header, streams, false)
    }

    fn chosen_with(header: &str, streams: bool, cbor: bool) -> Result<Accepted, String> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, header.parse().unwrap());
        let def = find("", "v1", "configmaps").unwrap();
        negotiate_with(&headers, def, if streams { "watch" } else { "get" }, cbor).map_err(|status| status.message)
    }

    #[test]
    fn what_there_is_is_listed_for_each_verb() {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, "text/html".parse().unwrap());
        let maps = find("", "v1", "configmaps").unwrap();
        let custom = ResourceDef { custom: true, ..*maps };
        let available = "406: Not Acceptable\n\nAvailable representations: ";
        let only = "only the following media types are accepted: ";
        for (def, verb, expected) in [
            (maps, "get", format!("{available}{MEDIA_TYPES}")),
            (maps, "create", format!("{available}{MEDIA_TYPES}")),
            (maps, "list", format!("{available}{MEDIA_TYPES}, {STREAMS}")),
            (maps, "watch", format!("{available}{MEDIA_TYPES}, {STREAMS}")),
            (&custom, "get", format!("{only}{MEDIA_TYPES}")),
            (&custom, "watch", format!("{only}{STREAMS}")),
        ] {
            assert_eq!(negotiate_with(&headers, def, verb, false).unwrap_err().message, expected);
        }
        assert_eq!(text_with(&headers, false).unwrap_err().message, format!("{available}text/plain, {MEDIA_TYPES}"));
        for (header, cbor, taken) in [
            ("text/plain", false, true),
            ("text/html, */*;q=0.1", false, true),
            ("application/json", false, true),
            ("application/cbor", true, true),
            ("application/cbor", false, false),
        ] {
            headers.insert(header::ACCEPT, header.parse().unwrap());
            assert_eq!(text_with(&headers, cbor).is_ok(), taken, "{header}");
        }
    }

    #[test]
    fn cbor_is_had_where_its_gate_is_open() {
        use Format::{Metadata, MetadataList, Object, Table};
        use Media::{Cbor, Json, Protobuf};
        let table = "as=Table;v=v1;g=meta.k8s.io";
        let available = "406: Not Acceptable\n\nAvailable representations: ";
        let only = "only the following media types are accepted: ";
        let types = "application/json, application/yaml, application/vnd.kubernetes.protobuf, application/cbor";
        let streams = "application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch, \
                       application/cbor;stream=watch";
        for (header, stream, expected) in [
            ("application/cbor", false, Ok((Cbor, Object))),
            ("application/cbor", true, Ok((Cbor, Object))),
            ("application/cbor;stream=watch", true, Ok((Cbor, Object))),
            ("application/cbor,application/json", false, Ok((Cbor, Object))),
            ("application/json,application/cbor", false, Ok((Json, Object))),
            ("application/json;q=0.9,application/cbor", false, Ok((Cbor, Object))),
            ("application/cbor;q=0.9,application/vnd.kubernetes.protobuf", false, Ok((Protobuf, Object))),
            ("*/*", false, Ok((Json, Object))),
            ("application/cbor-seq,application/cbor", true, Ok((Cbor, Object))),
            ("application/cbor;as=PartialObjectMetadata;v=v1;g=meta.k8s.io", false, Ok((Cbor, Metadata))),
            ("application/cbor;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io", false, Ok((Cbor, MetadataList))),
            (&format!("application/cbor;{table},application/json;{table}"), false, Ok((Json, Table))),
            (&format!("application/cbor;{table}"), false, Err(format!("{only}{types}"))),
            (&format!("application/cbor;{table}"), true, Err(format!("{only}{streams}"))),
            ("application/cbor-seq", true, Err(format!("{available}{types}, {streams}"))),
            ("text/html", false, Err(format!("{available}{types}"))),
        ] {
            let open = chosen_with(header, stream, true).map(|accepted| (accepted.media, accepted.format));
            assert_eq!(open, expected, "{header}");
            // Where it is closed there is none, and nobody says that there might be.
            match chosen_with(header, stream, false) {
                Ok(accepted) => assert_ne!(accepted.media, Cbor, "{header}"),
                Err(why) => assert!(!why.contains("cbor"), "{header}: {why}"),
            }
        }
    }

    fn headers() -> impl Strategy<Value = String> {
        const PARTS: &[&str] = &[
            "application/json",
            "application/yaml",
            "application/vnd.kubernetes.protobuf",
            "application/cbor",
            "application/cbor-seq",
            "application/*",
            "*/*",
            "text/html",
            "",
            " ",
            ";",
            "=",
            ",",
            ";q=0.5",
            ";q=0",
            ";q=NaN",
            ";q=-1",
            ";q=1e99",
            ";q=",
            ";as=Table",
            ";as=PartialObjectMetadata",
            ";as=PartialObjectMetadataList",
            ";as=X",
            ";v=v1",
            ";v=v1beta1",
            ";g=meta.k8s.io",
            ";stream=watch",
            ";stream=x",
            ";sv=v1",
            ";pretty=1",
        ];
        let part = prop_oneof![9 => prop::sample::select(PARTS).prop_map(str::to_owned), 1 => "[ -~]{0,6}"];
        prop::collection::vec(part, 0..40).prop_map(|parts| parts.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        /// Whatever a client says: it is answered in a form that it named, with all that the form needs, or refused.
        #[test]
        fn any_header_is_answered_or_refused(header in headers(), stream: bool, cbor: bool) {
            let mut map = HeaderMap::new();
            map.insert(header::ACCEPT, header.parse().unwrap());
            let (pod, custom) = (find("", "v1", "pods").unwrap(), ResourceDef { custom: true, group: "a.example", ..*find("", "v1", "pods").unwrap() });
            for def in [pod, &custom] {
                match negotiate_with(&map, def, if stream { "watch" } else { "list" }, cbor) {
                    Ok(Accepted { media, format, .. }) => {
                        let open = accept(&map).contains('*');
                        prop_assert!(header.contains(media.content_type()) || media == Media::Json && (open || header.is_empty()));
                        prop_assert!(format == Format::Object || header.contains("as="));
                        prop_assert!(media != Media::Cbor || cbor && format != Format::Table);
                        prop_assert!(media != Media::Protobuf || format != Format::Table && !(def.custom && format == Format::Object));
                        prop_assert!(!(stream && media == Media::Yaml));
                    }
                    Err(status) => {
                        prop_assert_eq!(status.code, 406);
                        prop_assert_eq!(status.message.contains("cbor"), cbor, "{}", status.message);
                    }
                }
            }
            let told = media_of_status(&map, cbor);
            prop_assert!(told == Media::Json || header.contains(told.content_type()));
            let _ = is_pretty(&map, None);
            // As many choices as there are, whichever order they have; the best is not beaten by the next.
            prop_assert_eq!(choices(&header).len(), header.split(',').take(MAX_CHOICES).count());
        }
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
