//! Takes from a wheel the files that are needed, once the wheel has proved to be the right one.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use zip::ZipArchive;

use super::fault;
use super::wheels::Wheel;

/// The SHA-256 of a file, in lower-case hexadecimal digits.
pub(crate) fn sha256(path: &Path) -> Result<String> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    loop {
        match file.read(&mut buffer).with_context(|| format!("cannot read {}", path.display()))? {
            0 => return Ok(format!("{:x}", digest.finalize())),
            n => digest.update(&buffer[..n]),
        }
    }
}

/// Unpacks what is needed of the wheel at `path` into `folder`, and returns the size and the path of each file.
pub(crate) fn unpack(wheel: &Wheel, path: &Path, folder: &Path) -> Result<Vec<(u64, String)>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut archive =
        ZipArchive::new(BufReader::new(file)).with_context(|| format!("{} is no wheel", path.display()))?;
    let needed: Vec<String> =
        archive.file_names().filter(|name| is_needed(wheel, name)).map(str::to_owned).collect();
    if let Some(absent) = wheel.keep.iter().find(|keep| !needed.iter().any(|name| name.starts_with(**keep))) {
        bail!("{} holds no {absent}", path.display());
    }
    let mut made = HashSet::new();
    let mut files = Vec::with_capacity(needed.len());
    for name in needed {
        let mut member = archive.by_name(&name).with_context(|| format!("{} in {}", name, path.display()))?;
        // A name that leads out of the folder has no enclosed name.
        let inside = member.enclosed_name().with_context(|| format!("{} holds {name}", path.display()))?;
        let to = folder.join(inside);
        if let Some(above) = to.parent().filter(|above| !made.contains(*above)) {
            fs::create_dir_all(above).map_err(|error| fault::writing(above, error))?;
            made.insert(above.to_path_buf());
        }
        let mut out = File::create(&to).map_err(|error| fault::writing(&to, error))?;
        let size = io::copy(&mut member, &mut out).map_err(|error| fault::writing(&to, error))?;
        files.push((size, name));
    }
    Ok(files)
}

/// Whether a member of the wheel is one of the files to keep.
fn is_needed(wheel: &Wheel, name: &str) -> bool {
    let kept = wheel.keep.iter().any(|keep| {
        if keep.ends_with('/') { name.starts_with(keep) && !name.ends_with('/') } else { name == *keep }
    });
    kept && !wheel.leave_out.iter().any(|start| name.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::super::wheels;
    use super::*;

    fn needed(wheel: usize, name: &str) -> bool {
        is_needed(&wheels::release("linux", "x86_64", false).unwrap().wheels[wheel], name)
    }

    #[test]
    fn of_torch_headers_and_libraries_for_the_cpu_are_needed() {
        for name in [
            "torch/version.py",
            "torch/include/torch/script.h",
            "torch/include/c10/cuda/CUDAStream.h",
            "torch/lib/libtorch.so",
            "torch/lib/libtorch_cpu.so",
            "torch/lib/libc10.so",
            "torch/lib/libgomp.so.1",
            "torch/lib/libshm/libshm.h",
        ] {
            assert!(needed(2, name), "{name}");
        }
        for name in [
            "torch/include/",
            "torch/__init__.py",
            "torch/library.py",
            "torch/version.pyi",
            "torch/lib/libtorch_cuda.so",
            "torch/lib/libtorch_cuda_linalg.so",
            "torch/lib/libc10_cuda.so",
            "torch/lib/libtorch_nvshmem.so",
            "torch/lib/libtorch_python.so",
            "torch/lib/libcaffe2_nvrtc.so",
            "torch-2.11.0.dist-info/RECORD",
            "functorch/__init__.py",
        ] {
            assert!(!needed(2, name), "{name}");
        }
    }

    #[test]
    fn of_the_cuda_wheels_one_library_each_is_needed() {
        assert!(needed(0, "nvidia/cu13/lib/libcudart.so.13"));
        assert!(!needed(0, "nvidia/cu13/lib/libcudart_static.a"));
        assert!(!needed(0, "nvidia/cu13/include/cuda_runtime.h"));
        assert!(needed(1, "nvidia/cu13/lib/libcupti.so.13"));
        assert!(!needed(1, "nvidia/cu13/lib/libnvperf_host.so"));
    }

    #[test]
    fn a_hash_is_the_standards() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("abc");
        fs::write(&file, "abc").unwrap();
        // FIPS 180-2, appendix B.1.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(&file).unwrap(), expected);
    }
}
