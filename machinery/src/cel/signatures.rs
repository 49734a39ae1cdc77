//! The functions with their types, as a table.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::types::Type;

/// One way to call a function.
#[derive(Debug)]
pub(super) struct Signature {
    /// Whether the first argument is the target.
    pub member: bool,
    /// Types of the arguments, the target first.
    pub arguments: Vec<Type>,
    /// Type of the result.
    pub result: Type,
}

/// Signatures by function. `A`, `B` are type parameters; `target.name(...)` is a method.
const TABLE: &str = "
!_(bool) bool
-_(int) int
-_(double) double
-_(duration) duration
_&&_(bool,bool) bool
_||_(bool,bool) bool
_?_:_(bool,A,A) A
_==_(A,A) bool
_!=_(A,A) bool
_<_(bool,bool) bool;(int,int);(int,uint);(int,double);(uint,uint);(uint,int);(uint,double);(double,double);(double,int);(double,uint);(string,string);(bytes,bytes);(timestamp,timestamp);(duration,duration)
_<=_(bool,bool) bool;(int,int);(int,uint);(int,double);(uint,uint);(uint,int);(uint,double);(double,double);(double,int);(double,uint);(string,string);(bytes,bytes);(timestamp,timestamp);(duration,duration)
_>_(bool,bool) bool;(int,int);(int,uint);(int,double);(uint,uint);(uint,int);(uint,double);(double,double);(double,int);(double,uint);(string,string);(bytes,bytes);(timestamp,timestamp);(duration,duration)
_>=_(bool,bool) bool;(int,int);(int,uint);(int,double);(uint,uint);(uint,int);(uint,double);(double,double);(double,int);(double,uint);(string,string);(bytes,bytes);(timestamp,timestamp);(duration,duration)
_+_(int,int) int
_+_(uint,uint) uint
_+_(double,double) double
_+_(string,string) string
_+_(bytes,bytes) bytes
_+_(list<A>,list<A>) list<A>
_+_(timestamp,duration) timestamp;(duration,timestamp)
_+_(duration,duration) duration
_-_(int,int) int
_-_(uint,uint) uint
_-_(double,double) double
_-_(timestamp,duration) timestamp
_-_(timestamp,timestamp) duration;(duration,duration)
_*_(int,int) int
_*_(uint,uint) uint
_*_(double,double) double
_/_(int,int) int
_/_(uint,uint) uint
_/_(double,double) double
_%_(int,int) int
_%_(uint,uint) uint
@in(A,list<A>) bool;(A,map<A,B>)
_[_](list<A>,int) A
_[_](map<A,B>,A) B
_[_](opt<list<A>>,int) opt<A>
_[_](opt<map<A,B>>,A) opt<B>
_[?_](list<A>,int) opt<A>;(opt<list<A>>,int)
_[?_](map<A,B>,A) opt<B>;(opt<map<A,B>>,A)
size(string) int;(bytes);(list<A>);(map<A,B>)
string.size() int
bytes.size() int
list<A>.size() int
map<A,B>.size() int
string.contains(string) bool
string.startsWith(string) bool
string.endsWith(string) bool
string.matches(string) bool
matches(string,string) bool
string.charAt(int) string
string.indexOf(string) int;(string,int)
string.lastIndexOf(string) int;(string,int)
string.lowerAscii() string
string.upperAscii() string
string.replace(string,string) string;(string,string,int)
string.split(string) list<string>;(string,int)
string.substring(int) string;(int,int)
string.trim() string
string.format(list<dyn>) string
strings.quote(string) string
list<string>.join() string;(string)
string.find(string) string
string.findAll(string) list<string>;(string,int)
bool(bool) bool;(string)
int(int) int;(uint);(double);(string);(timestamp);(duration)
uint(uint) uint;(int);(double);(string)
double(double) double;(int);(uint);(string)
string(string) string;(bool);(int);(uint);(double);(bytes);(timestamp);(duration);(net.IP);(net.CIDR)
bytes(bytes) bytes;(string)
timestamp(timestamp) timestamp;(string);(int)
duration(duration) duration;(string);(int)
dyn(A) dyn
type(A) type
timestamp.getFullYear() int;(string)
timestamp.getMonth() int;(string)
timestamp.getDayOfYear() int;(string)
timestamp.getDayOfMonth() int;(string)
timestamp.getDate() int;(string)
timestamp.getDayOfWeek() int;(string)
timestamp.getHours() int;(string)
timestamp.getMinutes() int;(string)
timestamp.getSeconds() int;(string)
timestamp.getMilliseconds() int;(string)
duration.getHours() int
duration.getMinutes() int
duration.getSeconds() int
duration.getMilliseconds() int
list<A>.isSorted() bool
list<int>.sum() int
list<uint>.sum() uint
list<double>.sum() double
list<duration>.sum() duration
list<A>.min() A
list<A>.max() A
list<A>.indexOf(A) int
list<A>.lastIndexOf(A) int
list<A>.first() opt<A>
list<A>.last() opt<A>
sets.contains(list<A>,list<A>) bool
sets.equivalent(list<A>,list<A>) bool
sets.intersects(list<A>,list<A>) bool
url(string) kubernetes.URL
isURL(string) bool
kubernetes.URL.getScheme() string
kubernetes.URL.getHost() string
kubernetes.URL.getHostname() string
kubernetes.URL.getPort() string
kubernetes.URL.getEscapedPath() string
kubernetes.URL.getQuery() map<string,list<string>>
ip(string) net.IP
isIP(string) bool
ip.isCanonical(string) bool
net.IP.family() int
net.IP.isUnspecified() bool
net.IP.isLoopback() bool
net.IP.isLinkLocalMulticast() bool
net.IP.isLinkLocalUnicast() bool
net.IP.isGlobalUnicast() bool
cidr(string) net.CIDR
isCIDR(string) bool
net.CIDR.containsIP(net.IP) bool;(string)
net.CIDR.containsCIDR(net.CIDR) bool;(string)
net.CIDR.ip() net.IP
net.CIDR.masked() net.CIDR
net.CIDR.prefixLength() int
quantity(string) kubernetes.Quantity
isQuantity(string) bool
kubernetes.Quantity.isInteger() bool
kubernetes.Quantity.asInteger() int
kubernetes.Quantity.asApproximateFloat() double
kubernetes.Quantity.sign() int
kubernetes.Quantity.add(kubernetes.Quantity) kubernetes.Quantity;(int)
kubernetes.Quantity.sub(kubernetes.Quantity) kubernetes.Quantity;(int)
kubernetes.Quantity.isLessThan(kubernetes.Quantity) bool
kubernetes.Quantity.isGreaterThan(kubernetes.Quantity) bool
kubernetes.Quantity.compareTo(kubernetes.Quantity) int
semver(string) kubernetes.Semver;(string,bool)
isSemver(string) bool;(string,bool)
kubernetes.Semver.major() int
kubernetes.Semver.minor() int
kubernetes.Semver.patch() int
kubernetes.Semver.isLessThan(kubernetes.Semver) bool
kubernetes.Semver.isGreaterThan(kubernetes.Semver) bool
kubernetes.Semver.compareTo(kubernetes.Semver) int
format.named(string) opt<kubernetes.NamedFormat>
format.dns1123Label() kubernetes.NamedFormat
format.dns1123Subdomain() kubernetes.NamedFormat
format.dns1035Label() kubernetes.NamedFormat
format.qualifiedName() kubernetes.NamedFormat
format.dns1123LabelPrefix() kubernetes.NamedFormat
format.dns1123SubdomainPrefix() kubernetes.NamedFormat
format.dns1035LabelPrefix() kubernetes.NamedFormat
format.labelValue() kubernetes.NamedFormat
format.uri() kubernetes.NamedFormat
format.uuid() kubernetes.NamedFormat
format.byte() kubernetes.NamedFormat
format.date() kubernetes.NamedFormat
format.datetime() kubernetes.NamedFormat
kubernetes.NamedFormat.validate(string) opt<list<string>>
optional.of(A) opt<A>
optional.ofNonZeroValue(A) opt<A>
optional.none() opt<A>
optional.unwrap(list<opt<A>>) list<A>
list<opt<A>>.unwrapOpt() list<A>
opt<A>.hasValue() bool
opt<A>.value() A
opt<A>.or(opt<A>) opt<A>
opt<A>.orValue(A) A
jsonpatch.escapeKey(string) string
kubernetes.authorization.Authorizer.path(string) kubernetes.authorization.PathCheck
kubernetes.authorization.Authorizer.group(string) kubernetes.authorization.GroupCheck
kubernetes.authorization.Authorizer.serviceAccount(string,string) kubernetes.authorization.Authorizer
kubernetes.authorization.GroupCheck.resource(string) kubernetes.authorization.ResourceCheck
kubernetes.authorization.ResourceCheck.subresource(string) kubernetes.authorization.ResourceCheck
kubernetes.authorization.ResourceCheck.namespace(string) kubernetes.authorization.ResourceCheck
kubernetes.authorization.ResourceCheck.name(string) kubernetes.authorization.ResourceCheck
kubernetes.authorization.ResourceCheck.fieldSelector(string) kubernetes.authorization.ResourceCheck
kubernetes.authorization.ResourceCheck.labelSelector(string) kubernetes.authorization.ResourceCheck
kubernetes.authorization.ResourceCheck.check(string) kubernetes.authorization.Decision
kubernetes.authorization.PathCheck.check(string) kubernetes.authorization.Decision
kubernetes.authorization.Decision.allowed() bool
kubernetes.authorization.Decision.reason() string
kubernetes.authorization.Decision.errored() bool
kubernetes.authorization.Decision.error() string
";

static SIGNATURES: LazyLock<HashMap<&'static str, Vec<Signature>>> = LazyLock::new(read);

/// The ways to call a function.
pub(super) fn signatures(function: &str) -> &'static [Signature] {
    SIGNATURES.get(function).map_or(&[], Vec::as_slice)
}

/// Whether a dotted name is that of a function and not a method's.
pub(super) fn is_qualified(name: &str) -> bool {
    SIGNATURES.get(name).is_some_and(|list| list.iter().any(|s| !s.member))
}

/// Prefixes of qualified functions.
const NAMESPACES: [&str; 6] = ["strings", "sets", "ip", "format", "optional", "jsonpatch"];

fn read() -> HashMap<&'static str, Vec<Signature>> {
    let mut out: HashMap<&'static str, Vec<Signature>> = HashMap::new();
    for line in TABLE.lines().filter(|l| !l.is_empty()) {
        // The parenthesis of the arguments is the first one: operators have none in their names.
        let Some(open) = line.find('(') else { continue };
        let head = &line[..open];
        let (target, name) = match head.rsplit_once('.') {
            Some((prefix, _)) if NAMESPACES.contains(&prefix) => (None, head),
            Some((target, name)) => (Some(target), name),
            None => (None, head),
        };
        let mut parts = line[open..].split(';');
        let Some((first, result)) = parts.next().and_then(|p| p.rsplit_once(' ')) else { continue };
        for arguments in std::iter::once(first).chain(parts) {
            let inner = arguments.trim_start_matches('(').trim_end_matches(')');
            let mut kinds: Vec<Type> = target.map(parse).into_iter().collect();
            kinds.extend(split(inner).into_iter().map(parse));
            let signature = Signature { member: target.is_some(), arguments: kinds, result: parse(result) };
            out.entry(name).or_default().push(signature);
        }
    }
    out
}

/// Splits at the commas that are not inside `<>`.
fn split(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut out) = (0, 0, Vec::new());
    for (i, c) in text.char_indices() {
        match c {
            '<' => depth += 1,
            '>' => depth -= 1,
            ',' if depth == 0 => {
                out.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    if start < text.len() {
        out.push(&text[start..]);
    }
    out
}

fn parse(text: &'static str) -> Type {
    let inner = |prefix: &str| text.strip_prefix(prefix).and_then(|t| t.strip_suffix('>'));
    if let Some(item) = inner("list<") {
        return Type::list(parse(item));
    }
    if let Some(item) = inner("opt<") {
        return Type::Optional(parse(item).into());
    }
    if let Some([key, value]) = inner("map<").map(split).as_deref() {
        return Type::Map(parse(key).into(), parse(value).into());
    }
    match text {
        "dyn" => Type::Dyn,
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "timestamp" => Type::Timestamp,
        "duration" => Type::Duration,
        "type" => Type::Type,
        "A" => Type::Param(0),
        "B" => Type::Param(1),
        other => Type::Opaque(other),
    }
}
