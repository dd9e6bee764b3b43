//! Cross-entropy of the next token, in slices of positions.

use eval::{kl_per_token, loss_per_token, scored};
use hooks::{HookSet, HookedModelExt as _, TokenBatch};
use tch::{Kind, Tensor};
use testkit::{ToyModel, assert_close, assert_same};

use crate::{
    common::{batch, gemma, refused, tokens, zeros},
    counting::Counting,
};

/// float32 log-sum-exp of a few hundred logits against float64.
const LOSS_OF_A_TOKEN: f64 = 1e-6;

/// `−log_softmax(logits)` of the next token, all at once and in float64.
fn naive(logits: &Tensor, tokens: &TokenBatch) -> Tensor {
    let n = tokens.pos() - 1;
    let log_p = logits.to_kind(Kind::Double).log_softmax(-1, Kind::Double).narrow(1, 0, n);
    -log_p.gather(-1, &tokens.ids().narrow(1, 1, n).unsqueeze(-1), false).squeeze_dim(-1)
}

fn toy_batch() -> TokenBatch {
    batch(&[vec![2, 5, 9, 1, 8, 3, 3], vec![2, 7, 7, 3, 29, 0, 11]])
}

#[test]
fn as_a_naive_log_softmax() {
    let (model, tokens) = (gemma(), tokens());
    let resid = model.residual(&tokens, 4, &mut HookSet::new()).unwrap();
    let got = loss_per_token(&model, &resid, &tokens, &mut HookSet::new()).unwrap();
    assert_eq!((got.size(), got.kind()), (vec![12, 19], Kind::Float));
    assert_close("losses", &got, &naive(&model.logits(&tokens).unwrap(), &tokens), LOSS_OF_A_TOKEN);
}

/// A vocabulary that takes several slices, none longer than 8,192.
#[test]
fn slices_do_not_matter() {
    let tokens = toy_batch();
    for (d_vocab, slices) in
        [(30, vec![30]), (8192, vec![8192]), (20_000, vec![8192, 8192, 3616]), (700_000, vec![8192; 85])]
    {
        let model = Counting::new(ToyModel::new(1, 3, d_vocab, 1));
        let resid = model.residual(&tokens, 1, &mut HookSet::new()).unwrap();
        let got = loss_per_token(&model, &resid, &tokens, &mut HookSet::new()).unwrap();
        let mut runs = model.take();
        runs.slices.truncate(85);
        assert_eq!((runs.slices, runs.norms), (slices, vec![6]), "a vocabulary of {d_vocab}");
        let want = naive(&model.unembed(&resid, &mut HookSet::new()).unwrap(), &tokens);
        assert_close(&format!("a vocabulary of {d_vocab}"), &got, &want, LOSS_OF_A_TOKEN);
    }
}

/// `Σ p (log p − log q)` as it is written, in float64.
fn naive_kl(p: &Tensor, q: &Tensor) -> Tensor {
    let (p, q) = (p.log_softmax(-1, Kind::Double), q.log_softmax(-1, Kind::Double));
    (p.exp() * (p - q)).sum_dim_intlist(-1, false, Kind::Double)
}

#[test]
fn kl_is_the_sum_as_it_is_written() {
    let tokens = toy_batch();
    for d_vocab in [30, 700_000] {
        let model = ToyModel::new(2, 6, d_vocab, 1);
        let of = |n_blocks| model.residual(&tokens, n_blocks, &mut HookSet::new()).unwrap();
        // Far apart, and logits in the hundreds, which overflow without the shift.
        for (clean, other) in [(of(2), of(1)), (of(2) * 50.0, of(1) * 30.0), (of(1) * 50.0, of(2))] {
            let got = kl_per_token(&model, &clean, &other).unwrap();
            let unembed = |x: &Tensor| model.unembed(x, &mut HookSet::new()).unwrap();
            let want = naive_kl(&unembed(&clean), &unembed(&other));
            assert_eq!(got.size(), [2, 7]);
            assert_close(&format!("a vocabulary of {d_vocab}"), &got.to_kind(Kind::Double), &want, 1e-5);
        }
        let same = kl_per_token(&model, &of(2), &of(2)).unwrap();
        assert!(same.abs().max().double_value(&[]) < 1e-5, "of itself");
    }
    let model = ToyModel::new(1, 6, 30, 1);
    refused(kl_per_token(&model, &zeros(&[1, 2, 6]), &zeros(&[1, 3, 6])), &["other", "[1, 3, 6]"]);
}

#[test]
fn the_first_token_of_a_document_is_not_scored_by_another() {
    let tokens = TokenBatch::packed(&[vec![5, 6, 7], vec![8, 9]], 5, 0, &[]).unwrap();
    let want = Tensor::from_slice(&[1i64, 1, 0, 1]).reshape([1, 4]).to_kind(Kind::Bool);
    assert_same("packed", &scored(tokens.counted(), &tokens).unwrap(), &want);
    let want = Tensor::ones([1, 4], (Kind::Bool, tch::Device::Cpu));
    let across = tokens.across_documents().unwrap();
    assert_same("across", &scored(across.counted(), &across).unwrap(), &want);
}

#[test]
fn one_position_predicts_nothing() {
    let model = ToyModel::new(2, 6, 30, 1);
    let tokens = batch(&[vec![5], vec![7]]);
    let resid = model.residual(&tokens, 2, &mut HookSet::new()).unwrap();
    let got = loss_per_token(&model, &resid, &tokens, &mut HookSet::new()).unwrap();
    assert_eq!(got.size(), [2, 0]);
    assert_eq!(scored(tokens.counted(), &tokens).unwrap().size(), [2, 0]);
}

#[test]
fn gradients_reach_the_residual() {
    let model = ToyModel::new(2, 6, 30, 1);
    let tokens = toy_batch();
    let resid = model.residual(&tokens, 2, &mut HookSet::new()).unwrap().detach().set_requires_grad(true);
    loss_per_token(&model, &resid, &tokens, &mut HookSet::new()).unwrap().sum(Kind::Float).backward();
    let grad = resid.grad();
    assert!(grad.narrow(1, 0, 6).abs().max().double_value(&[]) > 0.0);
    assert_same("the last position", &grad.select(1, 6), &zeros(&[2, 6]));
}

#[test]
fn a_loss_counts_where_a_position_and_its_next_do() {
    let kept = Tensor::from_slice(&[1i64, 1, 0, 1, 1, 0, 0, 1, 0, 1]).reshape([2, 5]).to_kind(Kind::Bool);
    let want = Tensor::from_slice(&[1i64, 0, 0, 1, 0, 0, 0, 0]).reshape([2, 4]).to_kind(Kind::Bool);
    let tokens = batch(&vec![vec![5; 5]; 2]);
    assert_same("scored", &scored(&kept, &tokens).unwrap(), &want);
}

#[test]
fn masks_of_another_shape_are_refused() {
    for size in [vec![3], vec![2, 3], vec![1, 4], vec![1, 3, 1]] {
        refused(scored(&zeros(&size).eq(0.0), &batch(&[vec![5; 3]])), &["kept", &format!("{size:?}")]);
    }
}
