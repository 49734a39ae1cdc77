//! The tree of an expression.

/// A node with the place in the source that problems point to.
#[derive(Clone, Debug, PartialEq)]
pub struct Expr {
    /// Byte offset.
    pub at: usize,
    /// What it is.
    pub kind: Kind,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// `null`
    Null,
    /// `true`
    Bool(bool),
    /// `1`
    Int(i64),
    /// `1u`
    Uint(u64),
    /// `1.0`
    Double(f64),
    /// `'text'`
    String(String),
    /// `b'bytes'`
    Bytes(Vec<u8>),
    /// `name`
    Ident(String),
    /// `operand.field`, `operand.?field`
    Select {
        /// What it is taken from.
        operand: Box<Expr>,
        /// Its name.
        field: String,
        /// Whether absence is an empty optional.
        optional: bool,
    },
    /// `has(operand.field)`
    Has {
        /// What may have it.
        operand: Box<Expr>,
        /// Its name.
        field: String,
    },
    /// `function(arguments)`, `target.function(arguments)`; operators are functions such as `_+_`.
    Call {
        /// Name.
        function: String,
        /// What it is a method of.
        target: Option<Box<Expr>>,
        /// Arguments.
        arguments: Vec<Expr>,
    },
    /// `[a, ?b]`
    List(Vec<(Expr, bool)>),
    /// `{k: v, ?k: v}`
    Map(Vec<(Expr, Expr, bool)>),
    /// `Name{field: value}`
    Struct {
        /// Name of the type.
        name: String,
        /// Fields; optional ones are left out when empty.
        fields: Vec<(String, Expr, bool)>,
        /// Where the colons of the fields are.
        colons: Vec<usize>,
    },
    /// `range.all(x, predicate)` and the like.
    Macro {
        /// Which.
        name: Macro,
        /// What is gone through (the optional, for the macros of optionals; the value, for `cel.bind`).
        range: Box<Expr>,
        /// Names of the variables.
        variables: Vec<String>,
        /// The expressions.
        arguments: Vec<Expr>,
    },
}

/// The macros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Macro {
    /// Every element.
    All,
    /// At least one.
    Exists,
    /// Exactly one.
    ExistsOne,
    /// A list of results, perhaps only of chosen elements.
    Map,
    /// The chosen elements.
    Filter,
    /// A list of results from index and element.
    TransformList,
    /// A map of results.
    TransformMap,
    /// A map of made entries.
    TransformMapEntry,
    /// `optional.optMap(x, e)`
    OptMap,
    /// `optional.optFlatMap(x, e)`
    OptFlatMap,
    /// `cel.bind(x, value, e)`
    Bind,
}
