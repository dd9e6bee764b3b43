//! Malicious, lying and damaged `torch.save` files: refused in one sentence with the file's name, and nothing is run.

use std::fs;

use proptest::prelude::*;
use tch::Kind;
use tch_ext::{Result, TensorError, TorchFile, TorchValue};

use crate::{
    common::{assert_same, bytes, cases, counting, refused},
    raw_zip::Member,
    torch_file::fixtures,
    torch_pickle::{
        call, global, int, ints, members, pickle, rebuilt, saved, storage, tensor, text, tuple, unzip,
    },
};

/// Opens an archive of these members, and reads every tensor in it.
fn open(members: &[Member]) -> Result<TorchValue> {
    let folder = tempfile::tempdir().unwrap();
    let file = TorchFile::open(&saved(&folder, members))?;
    read_all(&file, file.root())?;
    Ok(file.root().clone())
}

fn read_all(file: &TorchFile, value: &TorchValue) -> Result<()> {
    match value {
        TorchValue::Tensor(tensor) => {
            let read = file.tensor(tensor)?;
            assert_eq!((read.size().as_slice(), read.kind()), (tensor.shape(), tensor.kind()));
            let _ = bytes(&read);
        }
        TorchValue::Dict(entries) => entries.iter().try_for_each(|(_, value)| read_all(file, value))?,
        _ => value.as_items().unwrap_or_default().iter().try_for_each(|value| read_all(file, value))?,
    }
    Ok(())
}

/// Opens a file of one pickle beside one storage of six floats, which has the key 0.
fn load(instructions: &[u8]) -> Result<TorchValue> {
    open(&members(&pickle(instructions), &[("0", floats())]))
}

fn floats() -> Vec<u8> {
    bytes(&counting(&[6], Kind::Float, 0))
}

fn w() -> Vec<u8> {
    tensor("FloatStorage", "0", 6, 0, &[2, 3], &[3, 1])
}

#[test]
fn a_sound_file_first() {
    assert_eq!(load(&w()).unwrap().as_tensor().unwrap().shape(), [2, 3]);
    assert_eq!(load(&int(-7)).unwrap(), TorchValue::Int(-7));
}

#[test]
fn foreign_functions_are_named_and_not_run() {
    let folder = tempfile::tempdir().unwrap();
    let witness = folder.path().join("was run");
    let command = format!("touch {}", witness.display());
    let stack_global = |module: &str, name: &str| {
        let short = |text: &str| [&[0x8c, text.len() as u8], text.as_bytes()].concat();
        [short(module), short(name), vec![0x93]].concat()
    };
    for (module, name) in [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("__builtin__", "eval"),
        ("subprocess", "Popen"),
        ("torch", "load"),
        ("torch.hub", "load"),
        ("torch._utils", "_rebuild_tensor_v3"),
        ("torch", "ComplexFloatStorage"),
        ("collections", "OrderedDict.fromkeys"),
        ("collections", "defaultdict"),
        ("", ""),
        ("torch", ""),
    ] {
        let full = format!("`{module}.{name}`");
        let arguments = [text(&command)];
        for function in [global(module, name), stack_global(module, name)] {
            for instructions in [
                call(&function, &arguments),
                // Its value alone, an object made of it, an object with arguments; beside a tensor too.
                function.clone(),
                [&function[..], b")\x81"].concat(),
                [b"(", &function[..], &text(&command), b"o"].concat(),
                [b"}", &text("w")[..], &w(), b"s", &text("x"), &function, b"s"].concat(),
            ] {
                refused(load(&instructions), &["ae.pt", &full, "not read"]);
            }
        }
        refused(load(format!("(i{module}\n{name}\n").as_bytes()), &["ae.pt", &full, "not read"]);
    }
    assert!(!witness.exists());
    // A name may be as long as the file, or hold what moves a terminal's cursor.
    let long = refused(load(&global(&"a".repeat(100_000), "b")), &["ae.pt", "aaaa"]);
    assert!(long.len() < 400, "{} bytes", long.len());
    refused(load(&global("\u{1b}[31m", "b\r")), &["ae.pt", "not read"]);
}

#[test]
fn known_classes_are_not_made_otherwise() {
    let dict = global("collections", "OrderedDict");
    let pairs = tuple(&[tuple(&[text("a"), int(1)])]);
    for (instructions, word) in [
        ([&dict[..], b")\x81"].concat(), "`collections.OrderedDict`"),
        ([b"(", &dict[..], b"o"].concat(), "`collections.OrderedDict`"),
        (call(&dict, &[pairs]), "`collections.OrderedDict`"),
        (call(&global("torch", "Size"), &[int(3)]), "`torch.Size`"),
        (call(&global("torch", "device"), &[int(3)]), "damaged"),
        (call(&global("torch", "FloatStorage"), &[int(3)]), "`torch.FloatStorage`"),
        (
            call(&global("torch._utils", "_rebuild_parameter"), &[int(3), int(1), int(1)]),
            "`torch._utils._rebuild_parameter`",
        ),
        (call(&global("torch._utils", "_rebuild_tensor_v2"), &[]), "`torch._utils._rebuild_tensor_v2`"),
        (call(&global("torch", "float32"), &[]), "no function"),
        (call(&int(3), &[]), "no function"),
        (global("torch", "FloatStorage"), "`torch.FloatStorage`"),
        ([&w()[..], b"}b"].concat(), "attributes"),
        (storage("FloatStorage", "0", 6), "storage"),
        // BINBYTES, SHORT_BINBYTES, BYTEARRAY8; EMPTY_SET; PERSID, EXT1, NEXT_BUFFER, DUP, INT.
        (b"B\x01\0\0\0a".to_vec(), "bytes"),
        (b"C\x01a".to_vec(), "bytes"),
        (b"\x96\x01\0\0\0\0\0\0\0a".to_vec(), "bytes"),
        (b"\x8f".to_vec(), "set"),
        (b"Pid\n".to_vec(), "opcode 0x50"),
        (b"\x82\x01".to_vec(), "opcode 0x82"),
        (b"\x97".to_vec(), "opcode 0x97"),
        (b"N2".to_vec(), "opcode 0x32"),
        (b"I7\n".to_vec(), "opcode 0x49"),
        (b"\x80\x02N".to_vec(), "opcode 0x80"),
    ] {
        refused(load(&instructions), &["ae.pt", word]);
    }
}

#[test]
fn tensors_that_lie_are_refused() {
    const HUGE: i64 = i64::MAX;
    let of =
        |len, offset, shape: &[i64], stride: &[i64]| tensor("FloatStorage", "0", len, offset, shape, stride);
    for (instructions, words) in [
        // Storages that are larger than the member, smaller, of another class, or not there.
        (of(7, 0, &[2, 3], &[3, 1]), "claims a storage of 28 bytes, but `data/0` has 24"),
        (of(5, 0, &[2], &[1]), "claims a storage of 20 bytes"),
        (of(HUGE, 0, &[HUGE], &[1]), "claims a storage of"),
        (of(-6, 0, &[2, 3], &[3, 1]), "damaged"),
        (tensor("DoubleStorage", "0", 6, 0, &[6], &[1]), "claims a storage of 48 bytes"),
        (tensor("FloatStorage", "1", 6, 0, &[6], &[1]), "`data/1`, which is missing"),
        (tensor("FloatStorage", "../0", 6, 0, &[6], &[1]), "`data/../0`, which is missing"),
        (tensor("FloatStorage", "../data.pkl", 6, 0, &[6], &[1]), "missing"),
        (tensor("FloatStorage", "", 0, 0, &[0], &[1]), "missing"),
        // Views that reach beyond it.
        (of(6, 1, &[2, 3], &[3, 1]), "reaches beyond"),
        (of(6, 6, &[1], &[1]), "reaches beyond"),
        (of(6, 0, &[2, 3], &[4, 1]), "reaches beyond"),
        (of(6, 0, &[2], &[HUGE]), "reaches beyond"),
        (of(6, HUGE, &[2], &[HUGE]), "reaches beyond"),
        (of(6, HUGE, &[], &[]), "reaches beyond"),
        (of(6, HUGE, &[2; 2], &[HUGE; 2]), "reaches beyond"),
        // Negative numbers.
        (of(6, -1, &[2], &[1]), "offset"),
        (of(6, 5, &[6], &[-1]), "strides"),
        (of(6, 0, &[-2, -3], &[3, 1]), "sizes"),
        // What could be allocated though the file does not have it.
        (of(6, 0, &[1 << 40], &[0]), "has shape [1099511627776], but its storage has 6 values"),
        (of(6, 0, &[7], &[0]), "has shape [7]"),
        (of(6, 0, &[HUGE; 3], &[0; 3]), "has shape"),
        (of(6, 0, &[HUGE; 64], &[0; 64]), "has shape"),
        (of(6, 0, &[1; 65], &[0; 65]), "sizes"),
        // Not as many of these as of those, and what are no numbers.
        (of(6, 0, &[2, 3], &[1]), "2 sizes, but 1 strides"),
        (of(6, 0, &[], &[1]), "0 sizes, but 1 strides"),
        (rebuilt(&[int(0), int(0), ints(&[2]), ints(&[1])]), "no storage"),
        (rebuilt(&[storage("FloatStorage", "0", 6), text("0"), ints(&[2]), ints(&[1])]), "offset"),
        (rebuilt(&[storage("FloatStorage", "0", 6), int(0), int(2), ints(&[1])]), "sizes"),
        (rebuilt(&[storage("FloatStorage", "0", 6), int(0), tuple(&[b"N".to_vec()]), ints(&[1])]), "sizes"),
    ] {
        let named = [b"}", &text("sae")[..], b"}", &text("W_enc"), &instructions, b"ss"].concat();
        refused(load(&named), &["ae.pt", words]);
        if !words.contains("damaged") {
            refused(load(&named), &["ae.pt: tensor `sae.W_enc`: "]);
        }
    }
    // Without elements, whatever is said of the rest.
    for shape in [[0, 5], [5, 0]] {
        let empty = load(&of(6, 0, &shape, &[HUGE, 1])).unwrap();
        assert_eq!(empty.as_tensor().unwrap().shape(), shape);
    }
    refused(load(&of(6, 0, &[HUGE, 0, HUGE], &[1; 3])), &["ae.pt: its tensor: has shape"]);
}

/// A tensor whose values are to be negated when they are used says so in its metadata.
#[test]
fn metadata_that_change_values_are_refused() {
    let with = |metadata: &[u8]| {
        let arguments = [storage("FloatStorage", "0", 6), int(0), ints(&[6]), ints(&[1])];
        let rest = [b"\x89".to_vec(), b"N".to_vec(), metadata.to_vec()];
        load(&call(&global("torch._utils", "_rebuild_tensor_v2"), &[&arguments[..], &rest].concat()))
    };
    with(b"}").unwrap();
    refused(with(&[b"}", &text("neg")[..], b"\x88s"].concat()), &["ae.pt", "metadata"]);
}

#[test]
fn what_is_no_storage_is_refused() {
    let class = || global("torch", "FloatStorage");
    for what in [
        int(0),
        tuple(&[]),
        tuple(&[text("storage"), class(), text("0"), text("cpu")]),
        tuple(&[text("module"), class(), text("0"), text("cpu"), int(6)]),
        tuple(&[text("storage"), text("FloatStorage"), text("0"), text("cpu"), int(6)]),
        tuple(&[text("storage"), global("torch", "Size"), text("0"), text("cpu"), int(6)]),
    ] {
        refused(load(&[&what[..], b"Q"].concat()), &["ae.pt", "damaged"]);
    }
    let keyless = [tuple(&[text("storage"), class(), int(0), text("cpu"), int(6)]), b"Q".to_vec()].concat();
    refused(load(&rebuilt(&[keyless, int(0), ints(&[6]), ints(&[1])])), &["ae.pt", "without a name"]);
}

#[test]
fn numbers_and_texts() {
    for (instructions, n) in [
        (b"\x8a\x00".as_slice(), 0),
        (b"\x8a\x01\xFF", -1),
        (b"\x8a\x02\xFF\x00", 255),
        (b"\x8b\x03\0\0\0\x00\x00\x80", -(1 << 23)),
        (b"J\xFF\xFF\xFF\xFF", -1),
        (b"K\xFF", 255),
        (b"M\xFF\xFF", 65_535),
    ] {
        assert_eq!(load(instructions).unwrap(), TorchValue::Int(n));
    }
    for (instructions, word) in [
        (b"\x8a\x09\0\0\0\0\0\0\0\0\x01".as_slice(), "an integer of 9 bytes"),
        (&[b"\x8a\xFF".as_slice(), &[1; 255]].concat(), "an integer of 255 bytes"),
        (b"\x8b\xFF\xFF\xFF\xFF", "truncated"),
        (b"\x8b\xFF\xFF\xFF\x7F", "truncated"),
        (b"X\xFF\xFF\xFF\xFFa", "truncated"),
        (b"\x8d\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFFa", "truncated"),
        (b"\x95\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFFN", "truncated"),
        (b"X\x02\0\0\0\xFF\xFE", "UTF-8"),
        (b"c\xFF\na\n", "UTF-8"),
        (b"cos", "truncated"),
    ] {
        refused(load(instructions), &["ae.pt", word]);
    }
}

#[test]
fn instructions_that_find_nothing() {
    for instructions in [
        b"".as_slice(),
        b"t",
        b"a",
        b"e",
        b"s",
        b"u",
        b"b",
        b"R",
        b"Q",
        b"\x93",
        b"\x85",
        b"\x87",
        b"q\0",
        b"\x94",
        b"h\0",
        b"j\0\0\0\0",
        b"(",
        b"N(",
        b"NN",
        b"(N",
        b"](s",
        b"](a",
        b"N(a",
        b"}(Nu",
        b"](NNu",
        b"}NNa",
        b"}(e",
        b"N(q\0",
        b"N)R",
        b"NNR",
        b"NN\x93",
        b"]N.",
        b"N.N",
    ] {
        refused(load(instructions), &["ae.pt", "its pickle"]);
    }
    for (bytes, word) in [
        (b"".as_slice(), "truncated"),
        (b"\x80", "truncated"),
        (b"\x80\x01N.", "protocol"),
        (b"\x80\x06N.", "protocol"),
        (b"N.", "protocol"),
        (b"\x80\x02N", "truncated"),
    ] {
        refused(open(&members(bytes, &[])), &["ae.pt", word]);
    }
}

#[test]
fn a_dict_with_a_key_twice_or_an_odd_key() {
    let dict = |items: &[Vec<u8>]| [b"}(", &items.concat()[..], b"u"].concat();
    let n = || b"N".to_vec();
    refused(load(&dict(&[text("w"), n(), text("w"), n()])), &["ae.pt", "`w` stands twice"]);
    refused(load(&dict(&[int(1), n(), int(1), n()])), &["ae.pt", "`1` stands twice"]);
    for key in [b"]".to_vec(), b"}".to_vec(), w()] {
        refused(load(&dict(&[key, n()])), &["ae.pt", "no plain value"]);
    }
    let sound = load(&dict(&[text("1"), n(), int(1), n(), n(), n()])).unwrap();
    assert_eq!(sound.as_dict().unwrap().len(), 3);
}

#[test]
fn what_holds_itself_or_grows_without_end() {
    // A list in itself, a dict in itself, a list in a list in the first one.
    for instructions in
        [b"]q\0h\0a".to_vec(), [b"}q\0", &text("a")[..], b"h\0s"].concat(), b"]q\0]q\x01h\0aa".to_vec()]
    {
        refused(load(&instructions), &["ae.pt", "deep"]);
    }
    // A list of a list of …: a hundred are more than anyone writes, and a million would need as high a stack.
    assert!(load(&[&b"]".repeat(50)[..], &b"a".repeat(49)].concat()).is_ok());
    refused(load(&[&b"]".repeat(1_000_000)[..], &b"a".repeat(999_999)].concat()), &["ae.pt", "deep"]);
    // Twice the one before, sixty times.
    let doubled: Vec<u8> = (0..60u8).flat_map(|i| [b'h', i, 0x86, b'q', i + 1]).collect();
    refused(load(&[b"Nq\0", &doubled[..]].concat()), &["ae.pt", "far more memory"]);
    let long = [&text(&"a".repeat(1 << 20))[..], b"q\0(", &b"h\0".repeat(4000), b"t\x86"].concat();
    refused(load(&long), &["ae.pt", "far more memory"]);
    // More objects than a checkpoint has.
    let many = [b"(".as_slice(), &vec![b'N'; 5 << 20], b"t"].concat();
    refused(load(&many), &["ae.pt", "objects"]);
    refused(load(&vec![b'('; 5 << 20]), &["ae.pt", "objects"]);
    refused(load(&[b"N".as_slice(), &[0x94; 100]].concat()), &["ae.pt", "damaged"]);
    let large = Member { crc: 0, ..Member::stored("archive/data.pkl", vec![0; (64 << 20) + 1]) };
    let large = crate::raw_zip::archive(&[large]);
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("ae.pt"), large).unwrap();
    refused(TorchFile::open(&folder.path().join("ae.pt")), &["ae.pt: data.pkl", "the most that is read"]);
}

/// What is filled after it was used is full wherever it was used, as in Python.
#[test]
fn shared_values_are_shared() {
    let shared = load(b"(]q\0h\0K\x07at").unwrap();
    let seven = TorchValue::List(vec![TorchValue::Int(7)]);
    assert_eq!(
        shared,
        TorchValue::Tuple(
            vec![TorchValue::List(vec![]), seven.clone()].into_iter().map(|_| seven.clone()).collect()
        )
    );
}

#[test]
fn archives_that_lie_are_refused() {
    let sound = members(&pickle(&w()), &[("0", floats())]);
    open(&sound).unwrap();
    let with = |name: &str, change: &dyn Fn(&mut Member)| {
        let mut members = sound.clone();
        members.iter_mut().filter(|m| m.name == name).for_each(change);
        open(&members)
    };
    let doubled = [sound.clone(), vec![Member::stored("archive/data/0", vec![0; 24])]].concat();
    refused(open(&doubled), &["ae.pt", "doubled"]);
    let second = [sound.clone(), vec![Member::stored("other/data.pkl", pickle(b"N"))]].concat();
    refused(open(&second), &["ae.pt", "more than one `data.pkl`"]);
    let nested = |m: &mut Member| m.name = m.name.replace("archive", "a/b");
    refused(with("archive/data.pkl", &nested), &["ae.pt", "no `data.pkl`"]);
    refused(open(&[]), &["ae.pt"]);
    refused(
        with("archive/byteorder", &|m| *m = Member::stored(&m.name, b"big".to_vec())),
        &["ae.pt", "`big`"],
    );
    open(&sound.iter().filter(|m| !m.name.ends_with("byteorder")).cloned().collect::<Vec<_>>()).unwrap();
    refused(with("archive/data.pkl", &|m| m.crc ^= 1), &["ae.pt: data.pkl", "hecksum"]);
    for name in ["archive/data.pkl", "archive/data/0", "archive/version"] {
        refused(with(name, &|m| m.method = 8), &["ae.pt", &format!("`{name}` is compressed")]);
        for lie in [0, 1, 23, 25, 4 << 30, 1 << 40, 1 << 60, u64::MAX - 1, u64::MAX] {
            // The one, the other, and both alike, which zip64 can say of any size.
            refused(with(name, &|m| m.size = lie), &["ae.pt"]);
            refused(with(name, &|m| m.packed = lie), &["ae.pt"]);
            if lie > 1000 || name != "archive/version" {
                refused(with(name, &|m| (m.size, m.packed) = (lie, lie)), &["ae.pt"]);
            }
        }
    }
}

#[test]
fn other_formats_are_named() {
    let legacy =
        refused(TorchFile::open(&fixtures().join("legacy.pt")), &["legacy.pt", "before 1.6", "`torch.load`"]);
    assert!(legacy.contains("`torch.save`"), "{legacy}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ae.pt");
    for bytes in [b"".as_slice(), b"PK", b"\x93NUMPY\x01\0", &[0; 100], &[0xFF; 100]] {
        fs::write(&path, bytes).unwrap();
        refused(TorchFile::open(&path), &["ae.pt", "not a `torch.save` file"]);
    }
    assert!(matches!(TorchFile::open(&folder.path().join("none.pt")), Err(TensorError::Io { .. })));
    refused(TorchFile::open(folder.path()), &[]);
    // An npz is a zip archive too.
    refused(open(&[Member::stored("W_enc.npy", vec![0; 80])]), &["ae.pt", "no `data.pkl`"]);
}

#[test]
fn a_pickle_cut_anywhere_is_refused() {
    for case in ["config", "module", "protocol_5"] {
        let whole = unzip(&fixtures().join(format!("{case}.pt")));
        let at = whole.iter().position(|m| m.name.ends_with("/data.pkl")).unwrap();
        open(&whole).unwrap();
        for length in 0..whole[at].data.len() {
            let mut members = whole.clone();
            members[at] = Member::stored(&whole[at].name, whole[at].data[..length].to_vec());
            refused(open(&members), &["ae.pt", "its pickle"]);
        }
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let whole = fs::read(fixtures().join("protocol_2.pt")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ae.pt");
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        refused(TorchFile::open(&path), &["ae.pt"]);
    }
}

#[test]
fn a_file_cut_short_before_its_tensor_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ae.pt");
    fs::copy(fixtures().join("one_tensor.pt"), &path).unwrap();
    let file = TorchFile::open(&path).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(100).unwrap();
    refused(file.tensor(file.root().as_tensor().unwrap()), &["ae.pt", "its tensor"]);
}

proptest! {
    #![proptest_config(cases(512))]

    /// With a checksum that fits: damage that an attacker made.
    #[test]
    fn changed_pickles_never_panic(
        case in prop::sample::select(&["config", "module", "views", "protocol_5", "dtypes_p2"][..]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let mut members = unzip(&fixtures().join(format!("{case}.pt")));
        let at = members.iter().position(|m| m.name.ends_with("/data.pkl")).unwrap();
        let mut pickle = members[at].data.clone();
        for (place, byte) in changes {
            let place = place.index(pickle.len());
            pickle[place] = byte;
        }
        members[at] = Member::stored(&members[at].name, pickle);
        if let Err(error) = open(&members) {
            refused(Err::<(), _>(error), &["ae.pt"]);
        }
    }

    #[test]
    fn changed_files_never_panic(
        case in prop::sample::select(&["config", "views", "protocol_5"][..]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let mut bytes = fs::read(fixtures().join(format!("{case}.pt"))).unwrap();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ae.pt");
        fs::write(&path, bytes).unwrap();
        let read = TorchFile::open(&path).and_then(|file| read_all(&file, file.root()));
        if let Err(error) = read {
            refused(Err::<(), _>(error), &["ae.pt"]);
        }
    }

    /// Instructions in any order, most of them known.
    #[test]
    fn random_pickles_never_panic(
        parts in prop::collection::vec(
            prop_oneof![
                Just(w()), Just(text("a")), Just(int(1)), Just(b"h\0".to_vec()), Just(b"q\0".to_vec()),
                Just(global("collections", "OrderedDict")), Just(storage("FloatStorage", "0", 6)),
                prop::sample::select(&b"N}])(t\x85\x86\x87aesuRQbKG\x94\x93"[..]).prop_map(|op| vec![op]),
            ],
            0..12,
        ),
    ) {
        if let Err(error) = load(&parts.concat()) {
            refused(Err::<(), _>(error), &["ae.pt"]);
        }
    }
}

#[test]
fn a_storage_that_was_damaged_is_seen_wherever_it_lies() {
    let two = [&text("a")[..], &w(), &text("b"), &tensor("FloatStorage", "1", 6, 0, &[6], &[1])].concat();
    let two = pickle(&[b"}(", &two[..], b"u"].concat());
    let damaged = (0..4).filter(|&shift| {
        let mut members = members(&two, &[("0", floats()), ("1", floats())]);
        members[2].crc ^= 1;
        members.insert(0, Member::stored("archive/.pad", vec![0; shift]));
        let folder = tempfile::tempdir().unwrap();
        let file = TorchFile::open(&saved(&folder, &members)).unwrap();
        let read = |name: &str| file.tensor(file.root().get(name).unwrap().as_tensor().unwrap());
        assert_same("b", &read("b").unwrap(), &counting(&[6], Kind::Float, 0));
        let seen =
            read("a").map_err(|error| refused(Err::<(), _>(error), &["ae.pt: tensor `a`", "checksum"]));
        seen.is_err()
    });
    assert_eq!(damaged.count(), 4);
}
