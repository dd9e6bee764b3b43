use std::collections::HashMap;

/// What a position of a row is to metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Label {
    /// Not there: attention does not see it.
    Padding,
    /// BOS, EOS, what marks the turns of a conversation: seen, and never counted.
    Control,
    /// Text of no group.
    Text,
    /// Text of a group: an index into [`Groups`].
    Group(u32),
}

impl Label {
    /// Whether metrics count the position.
    pub fn counted(self) -> bool {
        matches!(self, Self::Text | Self::Group(_))
    }

    /// The group, where there is one.
    pub fn group(self) -> Option<u32> {
        match self {
            Self::Group(group) => Some(group),
            _ => None,
        }
    }
}

/// Token ids, with a label for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The ids.
    pub ids: Vec<i64>,
    /// As many labels.
    pub labels: Vec<Label>,
}

/// The names of groups, in the order of their first appearance.
#[derive(Debug, Clone, Default)]
pub struct Groups {
    names: Vec<String>,
    known: HashMap<String, u32>,
}

impl Groups {
    /// The names; a [`Label::Group`] is an index into them.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The label of a group by name, new or known.
    pub(crate) fn label(&mut self, name: &str) -> Label {
        if let Some(group) = self.known.get(name) {
            return Label::Group(*group);
        }
        let group = self.names.len() as u32;
        self.names.push(name.to_owned());
        self.known.insert(name.to_owned(), group);
        Label::Group(group)
    }
}
