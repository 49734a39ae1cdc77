//! Where a walk through a value is. It is written out only for what is told, which is seldom.

/// A place in a value, on the stack of the walk.
#[derive(Clone, Copy)]
pub enum Place<'a> {
    /// The whole.
    Root,
    /// A field of a type.
    Field(&'a Place<'a>, &'a str),
    /// A key of a map.
    Key(&'a Place<'a>, &'a str),
    /// An item of a list.
    Index(&'a Place<'a>, usize),
}

impl Place<'_> {
    /// The path with keys and list indexes (`spec.containers[0].env`).
    pub fn path(&self) -> String {
        let mut out = String::new();
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) {
        match self {
            Self::Root => {}
            Self::Field(before, name) | Self::Key(before, name) => {
                before.write(out);
                join(out, name);
            }
            Self::Index(before, index) => {
                before.write(out);
                *out += &format!("[{index}]");
            }
        }
    }

    /// The path of field names only (`spec.containers.env`).
    pub fn fields(&self) -> String {
        match self {
            Self::Root => String::new(),
            Self::Field(before, name) => {
                let mut out = before.fields();
                join(&mut out, name);
                out
            }
            Self::Key(before, _) | Self::Index(before, _) => before.fields(),
        }
    }

    /// The name of the field that the place is, or is in.
    pub fn field(&self) -> &str {
        match self {
            Self::Root => "",
            Self::Field(_, name) => name,
            Self::Key(before, _) | Self::Index(before, _) => before.field(),
        }
    }
}

fn join(path: &mut String, name: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    *path += name;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_written_with_and_without_what_is_no_field() {
        let spec = Place::Field(&Place::Root, "spec");
        let (list, map) = (Place::Field(&spec, "list"), Place::Field(&spec, "map"));
        let (item, value) = (Place::Index(&list, 3), Place::Key(&map, "a.b"));
        let inner = Place::Field(&item, "name");
        for (place, path, fields, field) in [
            (Place::Root, "", "", ""),
            (Place::Index(&Place::Root, 1), "[1]", "", ""),
            (spec, "spec", "spec", "spec"),
            (item, "spec.list[3]", "spec.list", "list"),
            (inner, "spec.list[3].name", "spec.list.name", "name"),
            (value, "spec.map.a.b", "spec.map", "map"),
        ] {
            assert_eq!((place.path().as_str(), place.fields().as_str(), place.field()), (path, fields, field));
        }
    }
}
