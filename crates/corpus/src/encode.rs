use crate::BoxError;

/// A tokenizer, as this crate needs one.
///
/// Texts go through [`encode`](Self::encode) as they are. Should a text spell a control token (`<bos>`, `<eos>`, `<pad>`,
/// `<start_of_turn>`, `<end_of_turn>`) and the tokenizer read it as one, it is asked again with the text cut behind the `<`, so
/// that a control token's name in a text is text, and no document can end a turn or begin another. What makes a control
/// token even so is refused.
pub trait Encode {
    /// The ids of a text, without BOS and EOS.
    ///
    /// # Errors
    /// The tokenizer's own.
    fn encode(&self, text: &str) -> Result<Vec<i64>, BoxError>;

    /// The id that each row begins with.
    fn bos(&self) -> i64;

    /// The id between two documents.
    fn eos(&self) -> i64;

    /// The id of padding.
    fn pad(&self) -> i64;

    /// The id of a token by its text: asked for `<start_of_turn>` and `<end_of_turn>`. `None` where the vocabulary has none.
    fn token(&self, text: &str) -> Option<i64>;
}

impl<E: Encode + ?Sized> Encode for &E {
    fn encode(&self, text: &str) -> Result<Vec<i64>, BoxError> {
        (**self).encode(text)
    }

    fn bos(&self) -> i64 {
        (**self).bos()
    }

    fn eos(&self) -> i64 {
        (**self).eos()
    }

    fn pad(&self) -> i64 {
        (**self).pad()
    }

    fn token(&self, text: &str) -> Option<i64> {
        (**self).token(text)
    }
}

pub(crate) const START_OF_TURN: &str = "<start_of_turn>";
pub(crate) const END_OF_TURN: &str = "<end_of_turn>";

/// The tokens that no text may make.
const CONTROLS: [&str; 5] = ["<bos>", "<eos>", "<pad>", START_OF_TURN, END_OF_TURN];

/// An encoder by which no text makes a control token.
#[derive(Debug)]
pub(crate) struct Encoder<E> {
    inner: E,
    controls: Vec<i64>,
}

impl<E: Encode> Encoder<E> {
    pub(crate) fn new(inner: E) -> Self {
        let mut controls = vec![inner.bos(), inner.eos(), inner.pad()];
        controls.extend(inner.token(START_OF_TURN));
        controls.extend(inner.token(END_OF_TURN));
        Self { inner, controls }
    }

    pub(crate) fn bos(&self) -> i64 {
        self.inner.bos()
    }

    pub(crate) fn eos(&self) -> i64 {
        self.inner.eos()
    }

    /// The ids of the marks around a turn.
    pub(crate) fn turn_marks(&self) -> Option<(i64, i64)> {
        Some((self.inner.token(START_OF_TURN)?, self.inner.token(END_OF_TURN)?))
    }

    pub(crate) fn encode(&self, text: &str) -> Result<Vec<i64>, BoxError> {
        let ids = self.inner.encode(text)?;
        if self.control_in(&ids).is_none() {
            return Ok(ids);
        }
        let mut ids = Vec::new();
        for piece in cut_at_controls(text) {
            ids.extend(self.inner.encode(piece)?);
        }
        match self.control_in(&ids) {
            Some(id) => Err(format!("its text makes the control token {id}").into()),
            None => Ok(ids),
        }
    }

    fn control_in(&self, ids: &[i64]) -> Option<i64> {
        ids.iter().copied().find(|id| self.controls.contains(id))
    }
}

/// The text in pieces of which none holds a control token's name: cut behind each such name's `<`.
fn cut_at_controls(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut start = 0;
    for (at, _) in text.match_indices('<') {
        if CONTROLS.iter().any(|name| text[at..].starts_with(name)) {
            pieces.push(&text[start..=at]);
            start = at + 1;
        }
    }
    pieces.push(&text[start..]);
    pieces
}
