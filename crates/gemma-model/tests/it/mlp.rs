//! The MLP: `post = gelu_tanh(W_gate x) · W_up x`.

use testkit::assert_close;

use crate::common::{CASES, ONE_STEP, Run};

#[test]
fn both_branches_read_the_normed_stream() {
    for case in CASES {
        let run = Run::of(case);
        for l in run.layers() {
            let weight = |name: &str| format!("model.layers.{l}.{name}");
            let x =
                run.normed(&format!("blocks.{l}.ln2.hook_normalized"), &weight("pre_feedforward_layernorm"));
            for (site, w) in [("mlp.hook_pre", "mlp.gate_proj"), ("mlp.hook_pre_linear", "mlp.up_proj")] {
                let want = x.matmul(&run.weight(&weight(w)).tr());
                assert_close(
                    &format!("{case}: {site}"),
                    &run.at(&format!("blocks.{l}.{site}")),
                    &want,
                    ONE_STEP,
                );
            }
        }
    }
}

#[test]
fn the_product_of_the_gates_gelu_and_the_other_branch() {
    for case in CASES {
        let run = Run::of(case);
        for l in run.layers() {
            let at = |site: &str| run.at(&format!("blocks.{l}.mlp.{site}"));
            // GELU by tanh: ½ x (1 + tanh(√(2/π) (x + 0.044715 x³))) (arXiv 1606.08415, section 2).
            let x = at("hook_pre");
            let inner = (&x + x.pow_tensor_scalar(3) * 0.044_715) * (2.0 / std::f64::consts::PI).sqrt();
            let gelu = &x * (inner.tanh() + 1.0) * 0.5;
            assert_close(
                &format!("{case}: layer {l}"),
                &at("hook_post"),
                &(gelu * at("hook_pre_linear")),
                ONE_STEP,
            );
        }
    }
}
