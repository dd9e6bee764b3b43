//! Documents that share a row are what they are alone.

use hooks::{ActivationCache, Axis, HookPoint, HookedModelExt as _, TokenBatch};
use proptest::prelude::*;
use tch::{Kind, Tensor};
use testkit::{assert_close, assert_same};

use gemma_model::Gemma2;

use crate::common::{batch, cases, model};

/// The same sums over other numbers of rows and keys, so in another order.
const OTHER_ORDER: f64 = 1e-5;

const SPECIAL: [i64; 3] = [0, 1, 2];

/// A stretch of a row that belongs to one document.
#[derive(Debug)]
struct Piece {
    row: i64,
    first: i64,
    ids: Vec<i64>,
}

/// What `packed` promises: the documents in a line, cut into rows.
fn pieces(documents: &[Vec<i64>], ctx: usize) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut at = 0;
    for document in documents {
        let mut rest = document.as_slice();
        while !rest.is_empty() {
            let (piece, left) = rest.split_at(rest.len().min(ctx - at % ctx));
            pieces.push(Piece { row: (at / ctx) as i64, first: (at % ctx) as i64, ids: piece.to_vec() });
            at += piece.len();
            rest = left;
        }
    }
    pieces
}

fn everything(model: &Gemma2, tokens: &TokenBatch) -> (Tensor, ActivationCache) {
    let sites: Vec<_> = HookPoint::all(model.config().dims.n_layers).collect();
    model.run_with_cache(tokens, &sites).unwrap()
}

/// The piece's part of an activation: its positions, on each axis that counts positions.
fn part(site: HookPoint, act: &Tensor, piece: &Piece) -> Tensor {
    let mut part = act.narrow(0, piece.row, 1);
    for (i, axis) in site.axes().iter().enumerate() {
        if matches!(axis, Axis::Pos | Axis::QueryPos | Axis::KeyPos) {
            part = part.narrow(i as i64, piece.first, piece.ids.len() as i64);
        }
    }
    part
}

/// Documents some of which are longer than the windows of 8, 5 and 6.
fn documents() -> impl Strategy<Value = Vec<Vec<i64>>> {
    prop::collection::vec(prop::collection::vec(0i64..250, 1..24), 1..6)
}

fn case() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&["mini-2b", "mini-9b", "mini-padded"][..])
}

proptest! {
    #![proptest_config(cases(32))]

    #[test]
    fn a_document_in_a_row_is_the_document_alone(
        documents in documents(),
        ctx in 1usize..64,
        case in case(),
    ) {
        let model = model(case);
        let packed = TokenBatch::packed(&documents, ctx, 0, &SPECIAL).unwrap();
        let (logits, acts) = everything(&model, &packed);
        for piece in pieces(&documents, ctx) {
            let (alone_logits, alone) = everything(&model, &batch(std::slice::from_ref(&piece.ids)));
            for (site, want) in alone.iter() {
                let got = part(site, acts.get(site).unwrap(), &piece);
                assert_close(&format!("{case}: {site} of {piece:?}"), &got, want, OTHER_ORDER);
            }
            let got = logits.narrow(0, piece.row, 1).narrow(1, piece.first, piece.ids.len() as i64);
            assert_close(&format!("{case}: logits of {piece:?}"), &got, &alone_logits, OTHER_ORDER);
        }
    }

    #[test]
    fn attention_never_crosses_documents(documents in documents(), ctx in 2usize..64, case in case()) {
        let model = model(case);
        let packed = TokenBatch::packed(&documents, ctx, 0, &SPECIAL).unwrap();
        let (_, acts) = everything(&model, &packed);
        let pos = packed.pos();
        for l in 0..model.config().dims.n_layers {
            let site = HookPoint::AttnPattern(hooks::LayerIdx(l));
            let pattern = acts.get(site).unwrap();
            for piece in pieces(&documents, ctx) {
                // A row that sums to one within the document has nothing left for others; not even rounding.
                let rows = pattern.narrow(0, piece.row, 1).narrow(2, piece.first, piece.ids.len() as i64);
                let (before, end) = (piece.first, piece.first + piece.ids.len() as i64);
                let outside = Tensor::cat(&[rows.narrow(3, 0, before), rows.narrow(3, end, pos - end)], 3);
                let crossed = outside.abs().sum(Kind::Double).double_value(&[]);
                prop_assert_eq!(crossed, 0.0, "{}: {:?}", case, piece);
            }
        }
    }

    #[test]
    fn across_documents_a_row_is_one_text(documents in documents(), ctx in 1usize..64, case in case()) {
        let model = model(case);
        let packed = TokenBatch::packed(&documents, ctx, 0, &SPECIAL).unwrap();
        let rows = packed.rows().to_vec();
        let plain = match packed.attended() {
            Some(mask) => {
                let mask = Vec::<Vec<i64>>::try_from(&mask.to_kind(Kind::Int64)).unwrap();
                TokenBatch::with_mask(&rows, &mask, &SPECIAL).unwrap()
            }
            None => TokenBatch::new(&rows, &SPECIAL).unwrap(),
        };
        let (want, plain_acts) = everything(&model, &plain);
        let (got, acts) = everything(&model, &packed.across_documents().unwrap());
        assert_same(case, &got, &want);
        for (site, want) in plain_acts.iter() {
            assert_same(&format!("{case}: {site}"), acts.get(site).unwrap(), want);
        }
    }
}

#[test]
fn the_neighbours_of_a_document_do_not_matter() {
    let model = model("mini-9b");
    let with = |others: i64| {
        let documents = [vec![2, others, others + 1], vec![2, 7, 9, 11, 13, 15, 17, 19], vec![others; 5]];
        let packed = TokenBatch::packed(&documents, 16, 0, &SPECIAL).unwrap();
        model.logits(&packed).unwrap().narrow(1, 3, 8)
    };
    // The same shapes and the same numbers: not a bit differs.
    assert_same("logits", &with(20), &with(200));
}

#[test]
fn one_document_is_a_plain_row() {
    let model = model("mini-2b");
    let text: Vec<i64> = (2..22).collect();
    let packed = TokenBatch::packed(std::slice::from_ref(&text), 64, 0, &SPECIAL).unwrap();
    assert_eq!((packed.batch(), packed.pos()), (1, 20), "a row that is all there is needs no padding");
    assert_same("logits", &model.logits(&packed).unwrap(), &model.logits(&batch(&[text])).unwrap());
}
