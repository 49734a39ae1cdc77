//! Names of node labels, resources, images and claims as small numbers, so that filters compare integers.

use std::collections::HashMap;
use std::sync::Arc;

/// A name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sym(pub u32);

/// Gives each text one [`Sym`]. Holds what nodes and pods mention; never pod names or pod label values.
#[derive(Default)]
pub struct Interner {
    syms: HashMap<Arc<str>, Sym>,
    texts: Vec<Arc<str>>,
}

impl Interner {
    /// The number of a text, new if it was never seen.
    pub fn sym(&mut self, text: &str) -> Sym {
        if let Some(sym) = self.syms.get(text) {
            return *sym;
        }
        let sym = Sym(self.texts.len() as u32);
        let text: Arc<str> = text.into();
        self.texts.push(text.clone());
        self.syms.insert(text, sym);
        sym
    }

    /// The number of a text that was seen before.
    pub fn find(&self, text: &str) -> Option<Sym> {
        self.syms.get(text).copied()
    }

    /// The text of a number.
    pub fn text(&self, sym: Sym) -> &Arc<str> {
        &self.texts[sym.0 as usize]
    }
}
