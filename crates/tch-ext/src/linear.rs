use std::sync::OnceLock;

use native::linear_few_rows;
use tch::{Device, Kind, Tensor};

use crate::Result;

/// Below this many weights the faster routes cost more to enter than they save.
const SMALL: i64 = 1 << 17;

/// `x Wᵀ`: `x` `[.., d_in]` and `w` `[d_out, d_in]` to `[.., d_out]`, by the fastest of three routes.
///
/// * A few rows, as in generation: the time is the reading of the weights, and [`native::linear_few_rows`] reads them
///   once.
/// * Many rows of float32 on the CPU, where `w` is contiguous or a view of some columns turned around: oneDNN, which on
///   processors that are not Intel's is up to 1.3 times as fast as the MKL that `linear` takes (docs/benchmarks.md).
/// * Everything else, and wherever a gradient is to flow: libtorch's `linear`.
///
/// The routes differ in the order of their sums. Which is taken depends on shapes, dtype and device alone.
///
/// # Errors
/// libtorch's, as for widths that do not match.
pub fn linear(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let plain = || Ok(x.f_linear(w, None::<Tensor>)?);
    let (size, &[d_out, d_in]) = (x.size(), &w.size()[..]) else { return plain() };
    let Some((&width, outer)) = size.split_last() else { return plain() };
    let on_cpu = x.device() == Device::Cpu && w.device() == Device::Cpu;
    if !on_cpu || width != d_in || d_in * d_out < SMALL || x.requires_grad() || w.requires_grad() {
        return plain();
    }
    let rows: i64 = outer.iter().product();
    let kind = x.f_kind()?;
    if w.f_kind()? != kind || rows == 0 {
        return plain();
    }
    let shape = [outer, &[d_out]].concat();
    if rows <= native::most_rows(kind) {
        if let Some(out) = linear_few_rows(&x.f_reshape([rows, d_in])?.f_contiguous()?, w)? {
            return Ok(out.f_reshape(shape)?);
        }
    } else if kind == Kind::Float && has_onednn() {
        let w = if w.is_contiguous() { Some(w.shallow_clone()) } else { turned(w, rows)? };
        if let Some(w) = w {
            return Ok(by_onednn(&x.f_reshape([rows, d_in])?.f_contiguous()?, &w)?.f_reshape(shape)?);
        }
    }
    plain()
}

/// A view of some columns of a `[d_in, d_out]` matrix, turned around: oneDNN would turn it back with a slow copy. `None` where
/// that is not what `w` is, or where it would cost more than MKL, which reads such views, loses.
fn turned(w: &Tensor, rows: i64) -> Result<Option<Tensor>> {
    const FEWEST_ROWS: i64 = 128;
    const MOST_WEIGHTS: usize = 1 << 24;
    if rows < FEWEST_ROWS || w.numel() > MOST_WEIGHTS {
        return Ok(None);
    }
    Ok(native::transposed(&w.f_tr()?)?)
}

/// oneDNN returns a tensor of its own kind, and the copy of it back is the result. Of a large product that copy is made
/// slice by slice, so that it is never there twice.
///
/// For fewer than 24 rows it would first put the weights into another order; rows of zeros that nobody looks at are cheaper.
fn by_onednn(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    const MOST_AT_A_TIME: i64 = 1 << 24;
    const FEWEST_ROWS: i64 = 24;
    let (rows, d_out) = (x.size()[0], w.size()[0]);
    if rows < FEWEST_ROWS {
        let padded = x.f_pad([0, 0, 0, FEWEST_ROWS - rows], "constant", None)?;
        return Ok(by_onednn(&padded, w)?.f_narrow(0, 0, rows)?);
    }
    let x = x.f_to_mkldnn(None)?;
    let product = |w: &Tensor| x.f_mkldnn_linear(w, None::<Tensor>)?.f_to_dense(None, false);
    if rows * d_out <= MOST_AT_A_TIME {
        return Ok(product(w)?);
    }
    let out = Tensor::f_empty([rows, d_out], (Kind::Float, Device::Cpu))?;
    let at_a_time = (MOST_AT_A_TIME / rows).max(64).min(d_out);
    for start in (0..d_out).step_by(at_a_time as usize) {
        let n = at_a_time.min(d_out - start);
        out.f_narrow(1, start, n)?.f_copy_(&product(&w.f_narrow(0, start, n)?)?)?;
    }
    Ok(out)
}

/// Whether this build of libtorch computes with oneDNN on this processor: asked once, with a product of one number.
fn has_onednn() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let on = (Kind::Float, Device::Cpu);
        let ask = || {
            let (x, w) = (Tensor::f_ones([2, 1], on)?, Tensor::f_ones([1, 1], on)?);
            let y = x.f_to_mkldnn(None)?.f_mkldnn_linear(&w, None::<Tensor>)?.f_to_dense(None, false)?;
            y.f_double_value(&[1, 0])
        };
        ask().is_ok_and(|y: f64| y == 1.0)
    })
}
