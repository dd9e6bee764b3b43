use std::{fmt, fs, path::Path};

use hooks::TokenBatch;
use tch_ext::TensorError;

use crate::{ModelError, Result, error::one_line};

/// Who speaks in a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Who asks.
    User,
    /// Who answers.
    Model,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Model => "model",
        }
    }
}

/// What one of them says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn<'t> {
    /// Who.
    pub role: Role,
    /// What.
    pub text: &'t str,
}

/// Text to token ids and back. BOS always comes first: Gemma is lost without it.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: i64,
    eos: i64,
    pad: i64,
    end_of_turn: Option<i64>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` in a model's folder.
    ///
    /// # Errors
    /// The system's; [`ModelError::Tokenizer`] for a damaged file, or one without `<bos>`, `<eos>` and `<pad>`.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let bytes = fs::read(&path).map_err(|e| TensorError::io(&path, e))?;
        Self::from_bytes(&path.display().to_string(), &bytes)
    }

    /// As [`load`](Self::load), from memory; `file` stands for it in errors.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn from_bytes(file: &str, bytes: &[u8]) -> Result<Self> {
        let bad =
            |problem: String| ModelError::Tokenizer { file: file.to_owned(), problem: one_line(&problem) };
        let mut inner =
            tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| bad(format!("not a tokenizer: {e}")))?;
        // A file may ask for padding or truncation; a batch here is padded by us, and a text is never cut in silence.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| bad(e.to_string()))?;
        let id = |token: &str| inner.token_to_id(token).map(i64::from);
        let special = |token: &str| id(token).ok_or_else(|| bad(format!("has no token `{token}`")));
        let (bos, eos, pad) = (special("<bos>")?, special("<eos>")?, special("<pad>")?);
        let end_of_turn = id("<end_of_turn>");
        Ok(Self { inner, bos, eos, pad, end_of_turn })
    }

    /// The id of `<bos>`.
    pub fn bos(&self) -> i64 {
        self.bos
    }

    /// The id of `<eos>`.
    pub fn eos(&self) -> i64 {
        self.eos
    }

    /// The id of `<pad>`.
    pub fn pad(&self) -> i64 {
        self.pad
    }

    /// The ids that never count in metrics.
    pub fn special(&self) -> [i64; 3] {
        [self.bos, self.eos, self.pad]
    }

    /// How many ids there are, special ones included.
    pub fn d_vocab(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// BOS and the text's ids. A text that itself begins with `<bos>` gets no second one.
    ///
    /// # Errors
    /// [`ModelError::Text`] for an empty text.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>> {
        let ids = self.encode_plain(text)?;
        let bos = (ids.first() != Some(&self.bos)).then_some(self.bos);
        let all: Vec<i64> = bos.into_iter().chain(ids).collect();
        if all.len() < 2 { Err(ModelError::Text("the text is empty".to_owned())) } else { Ok(all) }
    }

    /// The text's ids and no BOS: for pieces of a longer text.
    ///
    /// # Errors
    /// [`ModelError::Text`] with what the tokenizer says.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<i64>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| ModelError::Text(e.to_string()))?;
        Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
    }

    /// A conversation in the template of the -it models, up to where the model answers: `<start_of_turn>`, role, the text
    /// without space around it, `<end_of_turn>` (the `chat_template` of their `tokenizer_config.json`).
    ///
    /// # Errors
    /// [`ModelError::Text`] for a tokenizer without turns, no turns, turns that don't begin with the user's and alternate, or
    /// a last turn that is not the user's.
    pub fn encode_chat(&self, turns: &[Turn<'_>]) -> Result<Vec<i64>> {
        let bad = |problem: &str| Err(ModelError::Text(problem.to_owned()));
        if self.end_of_turn.is_none() {
            return bad("this tokenizer has no `<end_of_turn>`: it is no chat model's");
        }
        let alternate = [Role::User, Role::Model].into_iter().cycle();
        if turns.iter().zip(alternate).any(|(turn, role)| turn.role != role) {
            return bad("the turns of a conversation must alternate, and the first be the user's");
        }
        if turns.last().is_none_or(|turn| turn.role != Role::User) {
            return bad("a conversation must end with a turn of the user's");
        }
        let mut text = String::new();
        for turn in turns {
            let role = turn.role.name();
            text += &format!("<start_of_turn>{role}\n{}<end_of_turn>\n", turn.text.trim());
        }
        self.encode(&(text + "<start_of_turn>model\n"))
    }

    /// Texts as one batch, the shorter ones padded on the right.
    ///
    /// # Errors
    /// [`ModelError::Text`] for an empty text; no text at all.
    pub fn batch(&self, texts: &[impl AsRef<str>]) -> Result<TokenBatch> {
        let rows = texts.iter().map(|text| self.encode(text.as_ref())).collect::<Result<Vec<_>>>()?;
        Ok(TokenBatch::padded(&rows, self.pad, &self.special())?)
    }

    /// Ids to text, without special tokens.
    ///
    /// # Errors
    /// [`ModelError::Text`] for ids that are none.
    pub fn decode(&self, ids: &[i64]) -> Result<String> {
        let known = |&id: &i64| {
            let known = u32::try_from(id).ok().filter(|id| self.inner.id_to_token(*id).is_some());
            known.ok_or_else(|| ModelError::Text(format!("token id {id} is not in the vocabulary")))
        };
        let ids = ids.iter().map(known).collect::<Result<Vec<u32>>>()?;
        self.inner.decode(&ids, true).map_err(|e| ModelError::Text(e.to_string()))
    }

    /// Decodes ids as they come: text appears once it is whole, a character of several byte tokens with its last.
    pub fn stream(&self) -> TokenStream<'_> {
        TokenStream { tokenizer: self, ids: Vec::new(), shown: 0, settled: 0 }
    }

    /// How one token reads in a table: its text, with the space that SentencePiece writes as `▁`.
    pub fn piece(&self, id: i64) -> String {
        let token = u32::try_from(id).ok().and_then(|id| self.inner.id_to_token(id));
        token.map_or_else(|| format!("<{id}>"), |t| t.replace('▁', " "))
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("d_vocab", &self.d_vocab()).finish_non_exhaustive()
    }
}

/// The text of a sequence of ids, piece by piece. Made by [`Tokenizer::stream`].
#[derive(Debug)]
pub struct TokenStream<'t> {
    tokenizer: &'t Tokenizer,
    /// The ids whose text may still change with the next one, behind a few that give them context.
    ids: Vec<i64>,
    /// Bytes of their text that were given out.
    shown: usize,
    /// How many of the ids were given out whole.
    settled: usize,
}

impl TokenStream<'_> {
    /// The text that an id adds; empty while a character is not whole.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: i64) -> Result<String> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids)?;
        // An unfinished character reads as U+FFFD.
        if text.ends_with('\u{FFFD}') {
            return Ok(String::new());
        }
        let new = text.get(self.shown..).unwrap_or_default().to_owned();
        // The first id of a text reads without the space before it: one id that was given out stays for context.
        if self.settled > 0 {
            self.ids.drain(..self.settled.min(self.ids.len() - 1));
        }
        self.settled = self.ids.len();
        self.shown = self.tokenizer.decode(&self.ids)?.len();
        Ok(new)
    }

    /// What is left when no more ids come: an unfinished character as U+FFFD.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(self) -> Result<String> {
        Ok(self.tokenizer.decode(&self.ids)?.get(self.shown..).unwrap_or_default().to_owned())
    }
}
