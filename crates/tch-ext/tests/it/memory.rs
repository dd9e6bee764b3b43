//! What the allocator can't give is an error of its own, which says for which tensor.

use tch::{Device, Kind, TchError, Tensor};
use tch_ext::TensorError;

use crate::common::refused;

/// Of float32 four times as many bytes, which no machine has.
const TOO_MANY: i64 = 1 << 60;

fn no_memory() -> TensorError {
    Tensor::f_empty([TOO_MANY], (Kind::Float, Device::Cpu)).unwrap_err().into()
}

#[test]
fn an_allocation_that_cannot_be_made_says_how_much_was_asked_for() {
    let error = no_memory();
    assert!(matches!(error, TensorError::Memory { bytes, .. } if bytes == 4 << 60), "{error:?}");
    refused(Err::<(), _>(error), &["out of memory", "4611686018427387904 bytes"]);
}

#[test]
fn the_error_learns_the_tensors_name() {
    let error = no_memory().for_tensor("gemma/model.safetensors: W_E");
    assert!(matches!(&error, TensorError::Memory { what, .. } if what == "gemma/model.safetensors: W_E"));
    let at_fault = ["gemma/model.safetensors: W_E: out of memory", "4611686018427387904"];
    refused(Err::<(), _>(error), &at_fault);
}

#[test]
fn other_errors_keep_their_own_words() {
    let errors = || {
        let missing = TensorError::Missing { file: "a.safetensors".to_owned(), name: "b".to_owned() };
        [missing, TensorError::Torch("no".to_owned()), TensorError::Name("no device".to_owned())]
    };
    for (named, plain) in errors().into_iter().map(|e| e.for_tensor("W_E")).zip(errors()) {
        assert_eq!(named.to_string(), plain.to_string());
    }
}

#[test]
fn libtorchs_errors_are_their_first_line() {
    let of = |n: i64| Tensor::zeros([n], (Kind::Float, Device::Cpu));
    let error = TensorError::from(of(2).f_add(&of(3)).unwrap_err());
    assert!(matches!(error, TensorError::Torch(_)));
    refused(Err::<(), _>(error), &["libtorch: ", "size of tensor a (2)"]);
    // A sentence that only sounds like the allocator's.
    let error = TensorError::from(TchError::Torch("you tried to allocate nothing.\nC++ frames".to_owned()));
    assert_eq!(error.to_string(), "libtorch: you tried to allocate nothing");
}
