//! Nobody ever sees half a file.

use std::{
    fs::{self, File},
    io::{BufWriter, Write as _},
};

use tch_ext::{Result, TensorError, write_atomically};

use crate::common::{listing, refused};

fn writes_new(file: &mut BufWriter<&File>) -> Result<()> {
    file.write_all(b"new").unwrap();
    Ok(())
}

#[test]
fn writes_a_file_and_makes_its_folders() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a/b/file.bin");
    write_atomically(&path, writes_new).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(listing(path.parent().unwrap()), ["file.bin"]);
}

#[test]
fn replaces_an_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.bin");
    fs::write(&path, b"something longer than the new").unwrap();
    write_atomically(&path, writes_new).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(listing(folder.path()), ["file.bin"]);
}

#[test]
fn a_writer_that_fails_leaves_the_old_file_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.bin");
    fs::write(&path, b"old").unwrap();
    let failed = write_atomically(&path, |file| {
        file.write_all(&[7; 100_000]).unwrap();
        Err(TensorError::Name("the writer gave up".to_owned()))
    });
    refused(failed, &["the writer gave up"]);
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(listing(folder.path()), ["file.bin"]);
}

#[test]
fn a_writer_that_panics_leaves_the_old_file_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.bin");
    fs::write(&path, b"old").unwrap();
    let unwound = std::panic::catch_unwind(|| write_atomically(&path, |_| panic!("a bug elsewhere")));
    assert!(unwound.is_err());
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(listing(folder.path()), ["file.bin"]);
}

#[test]
fn a_path_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let is_folder = folder.path().join("taken");
    fs::create_dir(&is_folder).unwrap();
    refused(write_atomically(&is_folder, |_| Ok(())), &["taken"]);
    assert_eq!(listing(folder.path()), ["taken"]);

    fs::write(folder.path().join("file"), b"").unwrap();
    refused(write_atomically(&folder.path().join("file/below"), |_| Ok(())), &["below"]);
}

#[cfg(unix)]
#[test]
fn what_is_left_is_an_ordinary_file() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.bin");
    write_atomically(&path, |_| Ok(())).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
}

#[cfg(unix)]
#[test]
fn a_folder_without_rights_is_named() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let locked = folder.path().join("locked");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o500)).unwrap();
    // Root may write anywhere: there is nothing to refuse then.
    let kept_out = fs::write(locked.join("probe"), b"").is_err();
    let written = write_atomically(&locked.join("file.bin"), |_| Ok(()));
    if kept_out {
        refused(written, &["locked", "file.bin"]);
    }
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o700)).unwrap();
}
