//! The transposing kernel against libtorch's own copy, bit for bit.

use tch::{Device, Kind, Tensor};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

#[test]
fn is_the_transpose_of_matrices_and_of_their_columns() {
    for (rows, columns) in [(1, 1), (1, 40), (40, 1), (16, 16), (17, 33), (64, 256), (300, 1000)] {
        let whole = Tensor::randn([rows, columns + 7], CPU);
        for (start, width) in [(0, columns), (3, columns), (7, columns), (0, columns + 7)] {
            let view = whole.narrow(1, start, width);
            let got = native::transposed(&view).unwrap().expect("rows are contiguous");
            assert!(got.is_contiguous());
            assert_eq!(got.size(), [width, rows]);
            assert!(got.equal(&view.tr().contiguous()), "{rows} × {width} from {start}");
        }
    }
}

#[test]
fn the_last_row_ends_where_its_memory_does() {
    // A view that ends at the storage's last number.
    let view = Tensor::arange(35, CPU).view([5, 7]).narrow(1, 4, 3);
    let got = native::transposed(&view).unwrap().unwrap();
    assert!(got.equal(&view.tr().contiguous()));
}

#[test]
fn leaves_alone_what_it_does_not_know() {
    let m = Tensor::randn([6, 8], CPU);
    let of_none = |t: &Tensor| assert!(native::transposed(t).unwrap().is_none(), "{t:?}");
    of_none(&m.tr());
    of_none(&m.to_kind(Kind::Double));
    of_none(&m.narrow(0, 0, 0));
    of_none(&m.flatten(0, 1));
    of_none(&m.slice(1, None, None, 2));
    of_none(&m.get(0).expand([4, 8], false));
    of_none(&m.copy().set_requires_grad(true));
}
