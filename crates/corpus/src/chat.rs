use crate::{
    BoxError, Encode, Groups, Label, Turn,
    document::misordered,
    encode::{END_OF_TURN, Encoder, START_OF_TURN},
};

/// A conversation in the template of Gemma 2's -it models (the `chat_template` of their `tokenizer_config.json`), without its
/// BOS: for each turn `<start_of_turn>`, role and line break, the text without space around it, `<end_of_turn>`, line break.
///
/// What marks the turns is [`Label::Control`]; a token that holds the end of a mark and the beginning of the text counts as text.
pub(crate) fn chat_tokens<E: Encode>(
    encoder: &Encoder<E>,
    turns: &[Turn],
    subset: Option<&str>,
    groups: &mut Groups,
) -> Result<Vec<(i64, Label)>, BoxError> {
    if let Some(problem) = misordered(turns) {
        return Err(problem.into());
    }
    let Some((start, end)) = encoder.turn_marks() else {
        return Err(format!(
            "this tokenizer has no `{START_OF_TURN}` and `{END_OF_TURN}`: it is no chat model's"
        )
        .into());
    };
    let line_break = encoder.encode("\n")?;
    let mut tokens = Vec::new();
    for turn in turns {
        let role = turn.role.name();
        let label = match subset {
            Some(subset) => groups.label(&format!("{subset}/{role}")),
            None => groups.label(role),
        };
        // The template is one text to the tokenizer, so what stands between two marks is encoded in one go.
        let head = format!("{role}\n");
        let ids = encoder.encode(&(head.clone() + trimmed(&turn.text)))?;
        let marks = ids.iter().zip(encoder.encode(&head)?).take_while(|(a, b)| *a == b).count();
        tokens.push((start, Label::Control));
        tokens.extend(
            ids.iter().enumerate().map(|(i, id)| (*id, if i < marks { Label::Control } else { label })),
        );
        tokens.push((end, Label::Control));
        tokens.extend(line_break.iter().map(|id| (*id, Label::Control)));
    }
    Ok(tokens)
}

/// Without the space that Python's `strip` takes off, as the template does: Unicode's, and four separators of ASCII.
fn trimmed(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c))
}
