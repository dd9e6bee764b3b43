//! Matrices that are left in their files are as good as those in memory, bit by bit.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
};

use sae_core::{
    Matrix, OpenOptions, Sae, SaeExt as _, SaeParts, SparseAutoencoder as _, SparseFeatures, open,
};
use tch::{Device, Kind, Tensor};
use tch_ext::{NpzFile, SafetensorsFile, Stored};
use testkit::{Golden, assert_close, assert_same, fixture, normal};
use zip::{CompressionMethod, ZipArchive, ZipWriter, write::SimpleFileOptions};

use crate::{
    common::{ROUNDING, refused},
    reference::plain,
};

const D_IN: i64 = 12;
const D_SAE: i64 = 300;
const D_OUT: i64 = 7;

/// How a matrix may lie in a file.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Lie {
    Aligned,
    /// Three bytes off.
    Odd,
    /// In an archive, where the member's name decides.
    Archive,
}

const LIES: [(Lie, Kind); 9] = [
    (Lie::Aligned, Kind::Float),
    (Lie::Aligned, Kind::BFloat16),
    (Lie::Aligned, Kind::Half),
    (Lie::Odd, Kind::Float),
    (Lie::Odd, Kind::BFloat16),
    (Lie::Odd, Kind::Half),
    (Lie::Odd, Kind::Double),
    (Lie::Archive, Kind::Float),
    (Lie::Archive, Kind::Half),
];

fn bytes(tensor: &Tensor) -> Vec<u8> {
    Vec::try_from(tensor.contiguous().view_dtype(Kind::Uint8).view(-1)).unwrap()
}

/// Writes a matrix, and opens it without reading it.
fn stored(folder: &Path, name: &str, tensor: &Tensor, lie: Lie) -> Stored {
    let (data, size) = (bytes(tensor), tensor.size());
    if lie == Lie::Archive {
        let path = folder.join(format!("{name}.npz"));
        let dtype = if tensor.kind() == Kind::Float { "<f4" } else { "<f2" };
        let (rows, cols) = (size[0], size[1]);
        let text = format!("{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({rows}, {cols}), }}");
        let header = format!("{text:<117}\n");
        let npy = [b"\x93NUMPY\x01\0".as_slice(), &118u16.to_le_bytes(), header.as_bytes(), &data].concat();
        let mut zip = ZipWriter::new(File::create(&path).unwrap());
        let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        // A local record of 30 bytes, the name, and NumPy's 128: odd with these names.
        zip.start_file(format!("{name}.npy"), stored).unwrap();
        zip.write_all(&npy).unwrap();
        zip.finish().unwrap();
        let start = ZipArchive::new(File::open(&path).unwrap()).unwrap().by_index(0).unwrap().data_start();
        assert_ne!(start % 2, 0, "the archive is to be one that lies at an odd place");
        return NpzFile::open(&path).unwrap().stored(name).unwrap();
    }
    let path = folder.join(format!("{name}.safetensors"));
    let dtype = match tensor.kind() {
        Kind::Float => "F32",
        Kind::BFloat16 => "BF16",
        Kind::Half => "F16",
        _ => "F64",
    };
    let (before, start) = match lie {
        Lie::Odd => (r#""before":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"#, 3),
        _ => ("", 0),
    };
    let end = start + data.len();
    let tensor = format!(r#""{name}":{{"dtype":"{dtype}","shape":{size:?},"data_offsets":[{start},{end}]}}"#);
    let mut header = format!("{{{before}{tensor}}}");
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let length = (header.len() as u64).to_le_bytes();
    fs::write(&path, [&length, header.as_bytes(), &[1, 2, 3][..start], &data].concat()).unwrap();
    SafetensorsFile::open(&path).unwrap().stored(name).unwrap()
}

/// `tensor` (or its transpose) in a file.
fn left(folder: &Path, name: &str, tensor: &Tensor, lie: Lie, transposed: bool) -> Matrix {
    let written = if transposed { tensor.tr().contiguous() } else { tensor.contiguous() };
    let matrix = Matrix::open(stored(folder, name, &written, lie), transposed, 0, Device::Cpu).unwrap();
    assert!(matrix.held().is_none() && matrix.stored_as() == tensor.kind());
    matrix
}

fn each_lie(mut test: impl FnMut(&Path, &str, Lie, Kind, bool)) {
    for (lie, kind) in LIES {
        for transposed in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            test(folder.path(), &format!("{lie:?} {kind:?}, transposed {transposed}"), lie, kind, transposed);
        }
    }
}

#[test]
fn parts_are_those_of_the_matrix() {
    each_lie(|folder, what, lie, kind, transposed| {
        let tensor = normal(&[17, 23], 1).to_kind(kind);
        let want = tensor.to_kind(Kind::Float);
        let fresh = || left(folder, "W_enc", &tensor, lie, transposed);
        assert_eq!(fresh().size(), [17, 23]);
        for (a, b) in [(0, 23), (0, 1), (22, 23), (5, 9), (4, 4), (0, 0), (23, 23)] {
            assert_same(what, &fresh().columns(a..b).unwrap(), &want.narrow(1, a, b - a));
        }
        for (a, b) in [(0, 17), (0, 1), (16, 17), (5, 9), (4, 4), (17, 17)] {
            assert_same(what, &fresh().rows(a..b).unwrap(), &want.narrow(0, a, b - a));
        }
        for some in [&[3i64][..], &[16, 0, 16, 2, 2], &[]] {
            let some = Tensor::from_slice(some);
            assert_same(what, &fresh().select_rows(&some).unwrap(), &want.index_select(0, &some));
        }
        assert_same(what, &fresh().whole().unwrap(), &want);
        let moved = fresh().to_device(Device::Cpu).unwrap();
        assert!(moved.held().is_none());
        assert_same(what, &moved.columns(2..9).unwrap(), &want.narrow(1, 2, 7));
        // Column by column, as encoding goes through it, and once more.
        let matrix = fresh();
        for j in (0..23).chain(0..23) {
            assert_same(what, &matrix.columns(j..j + 1).unwrap(), &want.narrow(1, j, 1));
        }
    });
}

/// One SAE in memory and one in files.
fn both(folder: &Path, rule: &str, lie: Lie, kind: Kind, transposed: bool) -> (Sae, Sae) {
    let parts = plain(rule, [D_IN, D_SAE, D_OUT], 2);
    let rounded = |m: &Matrix| m.held().unwrap().to_kind(kind);
    let (w_enc, w_dec) = (rounded(&parts.w_enc), rounded(&parts.w_dec));
    let held = SaeParts {
        w_enc: w_enc.to_kind(Kind::Float).into(),
        w_dec: w_dec.to_kind(Kind::Float).into(),
        ..plain(rule, [D_IN, D_SAE, D_OUT], 2)
    };
    let w_enc = left(folder, "W_enc", &w_enc, lie, transposed);
    let w_dec = left(folder, "W_dec", &w_dec, lie, transposed);
    (Sae::new(held).unwrap(), Sae::new(SaeParts { w_enc, w_dec, ..parts }).unwrap())
}

/// Of sums in the same order; of a matrix that lies the other way round the sums may have another one.
#[track_caller]
fn assert_alike(what: &str, transposed: bool, got: &Tensor, want: &Tensor) {
    if transposed { assert_close(what, got, want, ROUNDING) } else { assert_same(what, got, want) }
}

#[test]
fn saes_compute_the_same() {
    for rule in ["jumprelu", "topk of five", "groupmax", "gated"] {
        each_lie(|folder, what, lie, kind, transposed| {
            let what = format!("{rule}, {what}");
            let (held, file) = both(folder, rule, lie, kind, transposed);
            let x = normal(&[9, D_IN], 3) * 1.7;
            let latents = held.encode(&x).unwrap();
            assert_alike(&what, transposed, &file.encode(&x).unwrap(), &latents);
            let sparse = held.encode_sparse(&x).unwrap();
            assert_same(&what, file.encode_sparse(&x).unwrap().indices(), sparse.indices());
            assert_alike(&what, transposed, &file.decode(&latents).unwrap(), &held.decode(&latents).unwrap());
            let (got, want) = (file.decode_sparse(&sparse).unwrap(), held.decode_sparse(&sparse).unwrap());
            assert_same(&what, &got, &want);
            let (got, want) = (file.reconstruct(&x).unwrap(), held.reconstruct(&x).unwrap());
            assert_alike(&what, transposed, &got, &want);
            let (got, want) = (file.w_enc(7..99).unwrap(), held.w_enc(7..99).unwrap());
            assert_same(&what, &got.unwrap(), &want.unwrap());
            assert_same(&what, &file.w_dec(7..99).unwrap(), &held.w_dec(7..99).unwrap());
            for ((name, got), (_, want)) in
                file.parameters().unwrap().into_iter().zip(held.parameters().unwrap())
            {
                assert_same(name, &got, &want);
            }
        });
    }
}

/// Little by little, as for matrices that are larger than a tile.
#[test]
fn tiles_of_what_is_in_a_file() {
    each_lie(|folder, what, lie, kind, transposed| {
        let (held, file) = both(folder, "jumprelu", lie, kind, transposed);
        let (held, file) = (held.with_tile(1), file.with_tile(1));
        let x = normal(&[9, D_IN], 4) * 1.7;
        assert_alike(what, transposed, &file.encode(&x).unwrap(), &held.encode(&x).unwrap());
        let latents = held.encode(&x).unwrap();
        assert_close(what, &file.decode(&latents).unwrap(), &held.decode(&latents).unwrap(), ROUNDING);
    });
}

/// Sizes at which other routes of a product are taken.
#[test]
fn many_weights() {
    for transposed in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let parts = || plain("jumprelu", [64, 4096, 64], 5);
        let matrix =
            |name: &str, m: &Matrix| left(folder.path(), name, m.held().unwrap(), Lie::Odd, transposed);
        let (w_enc, w_dec) = (matrix("W_enc", &parts().w_enc), matrix("W_dec", &parts().w_dec));
        let file = Sae::new(SaeParts { w_enc, w_dec, ..parts() }).unwrap();
        let held = Sae::new(parts()).unwrap();
        for n in [1, 3, 30] {
            let x = normal(&[n, 64], 6) * 1.7;
            assert_close("encode", &file.encode(&x).unwrap(), &held.encode(&x).unwrap(), ROUNDING);
            assert_close("output", &file.reconstruct(&x).unwrap(), &held.reconstruct(&x).unwrap(), ROUNDING);
        }
    }
}

#[test]
fn no_latent_and_no_row() {
    each_lie(|folder, what, lie, kind, transposed| {
        let (held, file) = both(folder, "jumprelu", lie, kind, transposed);
        for n in [0, 3] {
            let off = Tensor::zeros([n, D_SAE], (Kind::Float, Device::Cpu));
            let nothing = SparseFeatures::from_dense(&off).unwrap();
            let want = held.decode_sparse(&nothing).unwrap();
            assert_same(what, &file.decode_sparse(&nothing).unwrap(), &want);
        }
        let none = normal(&[0, D_IN], 7);
        assert_eq!(file.reconstruct(&none).unwrap().size(), [0, D_OUT], "{what}");
    });
}

#[test]
fn gradients_flow_through_what_is_in_a_file() {
    each_lie(|folder, what, lie, kind, transposed| {
        let (held, file) = both(folder, "jumprelu", lie, kind, transposed);
        let of = |sae: &Sae| {
            let x = (normal(&[5, D_IN], 8) * 1.7).set_requires_grad(true);
            sae.reconstruct(&x).unwrap().square().sum(Kind::Float).backward();
            x.grad()
        };
        assert_close(what, &of(&file), &of(&held), ROUNDING);
    });
}

/// A value that is no number, in the first latent or the last: an error as soon as it is read.
#[test]
fn what_is_not_finite_is_named_at_first_use() {
    each_lie(|folder, what, lie, kind, transposed| {
        for (latent, bad) in [(0, f64::NAN), (D_SAE - 1, f64::NAN), (D_SAE - 1, f64::INFINITY)] {
            let parts = || plain("jumprelu", [D_IN, D_SAE, D_OUT], 9);
            let damaged = |m: &Matrix, axis: i64| {
                let tensor = m.held().unwrap().to_kind(kind).copy();
                let _ = tensor.narrow(axis, latent, 1).narrow(1 - axis, 2, 1).fill_(bad);
                tensor
            };
            let x = normal(&[4, D_IN], 10) * 1.7;
            let extension = if lie == Lie::Archive { "npz" } else { "safetensors" };
            let at_fault =
                |name: &str| [format!("{name}.{extension}"), format!("`{name}"), "1 NaN or inf".into()];

            let w_enc = damaged(&parts().w_enc, 1);
            let with = || SaeParts { w_enc: left(folder, "W_enc", &w_enc, lie, transposed), ..parts() };
            let at_fault_enc = at_fault("W_enc");
            let names = [at_fault_enc[0].as_str(), "W_enc", &at_fault_enc[2]];
            refused(Sae::new(with()).unwrap().encode(&x), &names);
            refused(Sae::new(with()).unwrap().encode_sparse(&x), &names);
            refused(Sae::new(with()).unwrap().with_tile(1).reconstruct(&x), &names);
            refused(Sae::new(with()).unwrap().w_enc(latent..latent + 1), &names);
            refused(Sae::new(with()).unwrap().parameters(), &names);
            // And again: what failed is not taken for seen.
            let sae = Sae::new(with()).unwrap();
            for _ in 0..2 {
                refused(sae.encode(&x), &names);
            }

            let w_dec = damaged(&parts().w_dec, 0);
            let with = || SaeParts { w_dec: left(folder, "W_dec", &w_dec, lie, transposed), ..parts() };
            let at_fault_dec = at_fault("W_dec");
            let names = [at_fault_dec[0].as_str(), "W_dec", &at_fault_dec[2]];
            let sae = Sae::new(with()).unwrap();
            let one = Tensor::zeros([1, D_SAE], (Kind::Float, Device::Cpu));
            let _ = one.narrow(1, latent, 1).fill_(1.0);
            refused(sae.decode(&one), &names);
            refused(sae.decode_sparse(&SparseFeatures::from_dense(&one).unwrap()), &names);
            refused(sae.w_dec(latent..latent + 1), &names);
            refused(sae.parameters(), &names);
            // Rows that are not asked for are not read.
            let other = one.roll(7, 1);
            assert!(sae.decode_sparse(&SparseFeatures::from_dense(&other).unwrap()).is_ok(), "{what}");
        }
    });
}

/// float64 holds what float32 can't.
#[test]
fn values_beyond_float32() {
    for transposed in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let tensor = normal(&[4, 5], 11).to_kind(Kind::Double);
        let _ = tensor.get(1).fill_(1e300);
        let matrix = left(folder.path(), "W_enc", &tensor, Lie::Odd, transposed);
        refused(matrix.columns(0..5), &["W_enc", "infinite"]);
        refused(matrix.rows(0..2), &["W_enc", "infinite"]);
        refused(matrix.select_rows(&Tensor::from_slice(&[1i64])), &["W_enc", "infinite"]);
        assert!(matrix.rows(2..4).is_ok());
    }
}

#[test]
#[allow(clippy::reversed_empty_ranges, reason = "that is what is refused")]
fn ranges_that_are_not_there() {
    each_lie(|folder, _, lie, kind, transposed| {
        let tensor = normal(&[17, 23], 12).to_kind(kind);
        let held: Matrix = tensor.to_kind(Kind::Float).into();
        for matrix in [left(folder, "W_enc", &tensor, lie, transposed), held] {
            for (range, size) in [(-1..2, 23), (0..24, 23), (24..24, 23), (5..4, 23), (0..i64::MAX, 23)] {
                let text = format!("{}..{} is out of range", range.start, range.end);
                refused(matrix.columns(range), &[&text, &size.to_string()]);
            }
            for range in [-1..2, 0..18, 18..18, 5..4, i64::MIN..0] {
                let text = format!("{}..{} is out of range", range.start, range.end);
                refused(matrix.rows(range), &[&text, "17"]);
            }
            for index in [17, i64::MAX] {
                refused(matrix.select_rows(&Tensor::from_slice(&[0, index])), &[]);
            }
        }
    });
}

#[test]
fn what_is_no_matrix_of_weights() {
    let folder = tempfile::tempdir().unwrap();
    let vector = normal(&[3, 4, 5], 13);
    let of = |tensor: &Tensor| Stored::held("params: W", tensor.shallow_clone());
    for hold_up_to in [0, u64::MAX] {
        refused(
            Matrix::open(of(&vector), false, hold_up_to, Device::Cpu),
            &["params: W", "two axes", "[3, 4, 5]"],
        );
        for (kind, name) in [(Kind::Int64, "I64"), (Kind::Bool, "BOOL"), (Kind::Uint8, "U8")] {
            let whole = normal(&[3, 4], 14).to_kind(kind);
            refused(Matrix::open(of(&whole), false, hold_up_to, Device::Cpu), &["params: W", "F32", name]);
        }
    }
    // At the limit it is held, above it is not.
    let tensor = normal(&[5, 6], 15);
    for (hold_up_to, held) in [(120, true), (119, false)] {
        let stored = stored(folder.path(), "W_enc", &tensor, Lie::Odd);
        let matrix = Matrix::open(stored, false, hold_up_to, Device::Cpu).unwrap();
        assert_eq!(matrix.held().is_some(), held);
    }
}

/// The references' file, left where it is.
#[test]
fn gemma_scopes_file() {
    let path = fixture("sae/gemma-scope/stored/params.npz");
    let held = open(&path, &OpenOptions::default()).unwrap().sae;
    let options = OpenOptions { hold_up_to: 0, ..OpenOptions::default() };
    let file = open(&path, &options).unwrap().sae;
    assert!(held.encoder().held().is_some() && held.decoder().held().is_some());
    assert!(file.encoder().held().is_none() && file.decoder().held().is_none());
    let mut golden = Golden::open("sae/gemma-scope/stored/expected.safetensors");
    let x = golden.get("x");
    assert_same("features", &file.encode(&x).unwrap(), &held.encode(&x).unwrap());
    assert_same("output", &file.reconstruct(&x).unwrap(), &held.reconstruct(&x).unwrap());
    for ((name, got), (_, want)) in file.parameters().unwrap().into_iter().zip(held.parameters().unwrap()) {
        assert_same(name, &got, &want);
    }
    let folded = file.fold_decoder_norms().unwrap();
    let want = held.fold_decoder_norms().unwrap();
    assert_same("folded", &folded.encode(&x).unwrap(), &want.encode(&x).unwrap());
}
