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

    /// The id of a token by its text, special ones included; `None` where there is none.
    pub fn token(&self, text: &str) -> Option<i64> {
        self.inner.token_to_id(text).map(i64::from)
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

    /// Decodes ids as they come.
    pub fn stream(&self) -> TokenStream<'_> {
        TokenStream { tokenizer: self, last: None, bytes: Vec::new() }
    }

    /// The byte that a token like `<0x41>` stands for.
    fn byte(&self, id: i64) -> Option<u8> {
        let token = self.inner.id_to_token(u32::try_from(id).ok()?)?;
        let digits = token.strip_prefix("<0x")?.strip_suffix('>').filter(|digits| digits.len() == 2)?;
        u8::from_str_radix(digits, 16).ok()
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
///
/// A character that several byte tokens spell appears with the last of them; bytes that spell none appear as U+FFFD. For ids
/// of a text, the pieces together are what [`Tokenizer::decode`] makes of all of them.
#[derive(Debug)]
pub struct TokenStream<'t> {
    tokenizer: &'t Tokenizer,
    /// The last id that was given out: the first id of a text may read without the space before it.
    last: Option<i64>,
    /// The beginning of a character, from byte tokens.
    bytes: Vec<u8>,
}

impl TokenStream<'_> {
    /// The text that an id adds; empty while a character is not whole.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`]; then the id counts as not pushed.
    pub fn push(&mut self, id: i64) -> Result<String> {
        if let Some(byte) = self.tokenizer.byte(id) {
            self.bytes.push(byte);
            self.last = Some(id);
            return Ok(whole_characters(&mut self.bytes));
        }
        // A special token reads as nothing, and parts nothing.
        if self.tokenizer.decode(&[id])?.is_empty() {
            return Ok(String::new());
        }
        let new = match self.last {
            Some(last) => {
                let (before, both) = (self.tokenizer.decode(&[last])?, self.tokenizer.decode(&[last, id])?);
                both.strip_prefix(before.as_str()).unwrap_or(&both).to_owned()
            }
            None => self.tokenizer.decode(&[id])?,
        };
        self.last = Some(id);
        Ok(broken(&std::mem::take(&mut self.bytes)) + &new)
    }

    /// What is left when no more ids come: an unfinished character.
    pub fn finish(self) -> String {
        broken(&self.bytes)
    }
}

/// Takes from the front what is text, or can't become text any more.
fn whole_characters(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    while !bytes.is_empty() {
        match std::str::from_utf8(bytes) {
            Ok(whole) => {
                text += whole;
                bytes.clear();
            }
            Err(error) if error.valid_up_to() > 0 => {
                let rest = bytes.split_off(error.valid_up_to());
                text += &String::from_utf8_lossy(bytes);
                *bytes = rest;
            }
            // The beginning of a character.
            Err(error) if error.error_len().is_none() => break,
            Err(_) => {
                text += &broken(&[bytes.remove(0)]);
            }
        }
    }
    text
}

/// Bytes that are no text, each as U+FFFD.
fn broken(bytes: &[u8]) -> String {
    "\u{FFFD}".repeat(bytes.len())
}
