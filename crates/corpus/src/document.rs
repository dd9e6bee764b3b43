/// One document of a corpus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// What it says.
    pub content: Content,
    /// Which part of the corpus it belongs to, where that was asked for.
    pub subset: Option<String>,
}

/// What a document says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Plain text.
    Text(String),
    /// A conversation: the user's turn first, then in turns. [`Rows`](crate::Rows) refuses any other order, as Gemma's own
    /// template does.
    Chat(Vec<Turn>),
}

/// What one of two speakers says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// Who.
    pub role: Role,
    /// What; [`Rows`](crate::Rows) leaves off the space around it.
    pub text: String,
}

/// Who speaks in a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Who asks.
    User,
    /// Who answers; `assistant` in most files.
    Model,
}

impl Role {
    /// As Gemma's template writes it: `user` or `model`.
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Model => "model",
        }
    }
}

/// What is wrong with the order of turns, if anything.
pub(crate) fn misordered(turns: &[Turn]) -> Option<String> {
    let alternate = [Role::User, Role::Model].into_iter().cycle();
    let (at, turn) = turns
        .iter()
        .zip(alternate)
        .position(|(turn, role)| turn.role != role)
        .and_then(|at| Some((at, turns.get(at)?)))?;
    let role = turn.role.name();
    Some(match at {
        0 => format!("the first turn of a conversation must be the user's, but is the {role}'s"),
        _ => format!("the turns of a conversation must alternate, but turn {} is the {role}'s again", at + 1),
    })
}
