//! Which wheels hold libtorch on which platform, and which of their files are needed.

use anyhow::{Result, bail};

/// The libtorch that tch 0.24.0 speaks to: the two move together.
pub(crate) const VERSION: &str = "2.11.0";

/// libtorch for one platform: the wheels that hold it, unpacked side by side into one folder.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Release {
    /// As in the name of the folder, `linux-x86_64`.
    pub(crate) platform: &'static str,
    pub(crate) wheels: &'static [Wheel],
}

/// One wheel, pinned by its hash.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wheel {
    /// As pip is asked for it, `torch==2.11.0`.
    pub(crate) requirement: &'static str,
    /// The wheel's own platform tag, one of them where it has several: pip matches it to the letter.
    pub(crate) tag: &'static str,
    pub(crate) file: &'static str,
    pub(crate) sha256: &'static str,
    pub(crate) bytes: u64,
    /// What to unpack: files, and folders with a `/` at the end.
    pub(crate) keep: &'static [&'static str],
    /// The beginnings of the names of files that are left out all the same.
    pub(crate) leave_out: &'static [&'static str],
}

/// The release for a platform, in the words of [`std::env::consts`].
pub(crate) fn release(os: &str, arch: &str, musl: bool) -> Result<Release> {
    let wheels = match (os, arch, musl) {
        ("linux", "x86_64", false) => Release { platform: "linux-x86_64", wheels: LINUX_X86_64 },
        ("linux", "aarch64", false) => Release { platform: "linux-aarch64", wheels: LINUX_AARCH64 },
        ("macos", "aarch64", _) => Release { platform: "macos-arm64", wheels: MACOS_ARM64 },
        _ => bail!(
            "there is no libtorch {VERSION} to download for {os} on {arch}{}: set LIBTORCH to the folder of one \
             of your own, or LIBTORCH_USE_PYTORCH=1 to use the Python package torch=={VERSION}",
            if musl { " with musl" } else { "" },
        ),
    };
    Ok(wheels)
}

// What compiles and links against libtorch. The rest of the torch wheel is Python.
const TORCH: &[&str] = &["torch/include/", "torch/lib/", "torch/version.py"];

// What a run on the CPU does without: two thirds of torch/lib.
const CUDA_AND_PYTHON: &[&str] = &[
    "torch/lib/libc10_cuda",
    "torch/lib/libcaffe2_nvrtc",
    "torch/lib/libtorch_cuda",
    "torch/lib/libtorch_nvshmem",
    "torch/lib/libtorch_python",
];

// Both Linux wheels are built for CUDA 13, and their libtorch_cpu.so does not load without these two, which it finds
// by its own RPATH in nvidia/cu13/lib beside torch/.
const CUDART: &[&str] = &["nvidia/cu13/lib/libcudart.so.13"];
const CUPTI: &[&str] = &["nvidia/cu13/lib/libcupti.so.13"];

const LINUX_X86_64: &[Wheel] = &[
    Wheel {
        requirement: "nvidia-cuda-runtime==13.0.96",
        tag: "manylinux2014_x86_64",
        file: "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
        bytes: 2_243_632,
        keep: CUDART,
        leave_out: &[],
    },
    Wheel {
        requirement: "nvidia-cuda-cupti==13.0.85",
        tag: "manylinux_2_25_x86_64",
        file: "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl",
        sha256: "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
        bytes: 10_715_597,
        keep: CUPTI,
        leave_out: &[],
    },
    Wheel {
        requirement: "torch==2.11.0",
        tag: "manylinux_2_28_x86_64",
        file: "torch-2.11.0-cp312-cp312-manylinux_2_28_x86_64.whl",
        sha256: "0f68f4ac6d95d12e896c3b7a912b5871619542ec54d3649cf48cc1edd4dd2756",
        bytes: 530_712_279,
        keep: TORCH,
        leave_out: CUDA_AND_PYTHON,
    },
];

const LINUX_AARCH64: &[Wheel] = &[
    Wheel {
        requirement: "nvidia-cuda-runtime==13.0.96",
        tag: "manylinux2014_aarch64",
        file: "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
        sha256: "ef9bcbe90493a2b9d810e43d249adb3d02e98dd30200d86607d8d02687c43f55",
        bytes: 2_261_060,
        keep: CUDART,
        leave_out: &[],
    },
    Wheel {
        requirement: "nvidia-cuda-cupti==13.0.85",
        tag: "manylinux_2_25_aarch64",
        file: "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_aarch64.whl",
        sha256: "796bd679890ee55fb14a94629b698b6db54bcfd833d391d5e94017dd9d7d3151",
        bytes: 10_310_827,
        keep: CUPTI,
        leave_out: &[],
    },
    Wheel {
        requirement: "torch==2.11.0",
        tag: "manylinux_2_28_aarch64",
        file: "torch-2.11.0-cp312-cp312-manylinux_2_28_aarch64.whl",
        sha256: "f99924682ef0aa6a4ab3b1b76f40dc6e273fca09f367d15a524266db100a723f",
        bytes: 419_731_115,
        keep: TORCH,
        leave_out: CUDA_AND_PYTHON,
    },
];

const MACOS_ARM64: &[Wheel] = &[Wheel {
    requirement: "torch==2.11.0",
    tag: "macosx_11_0_arm64",
    file: "torch-2.11.0-cp312-cp312-macosx_11_0_arm64.whl",
    sha256: "4b5866312ee6e52ea625cd211dcb97d6a2cdc1131a5f15cc0d87eec948f6dd34",
    bytes: 80_606_338,
    keep: TORCH,
    leave_out: CUDA_AND_PYTHON,
}];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_agrees_with_itself() {
        for (os, arch) in [("linux", "x86_64"), ("linux", "aarch64"), ("macos", "aarch64")] {
            let release = release(os, arch, false).unwrap();
            assert!(release.wheels.iter().any(|wheel| wheel.requirement == format!("torch=={VERSION}")));
            for wheel in release.wheels {
                let (name, version) = wheel.requirement.split_once("==").unwrap();
                assert!(
                    wheel.file.starts_with(&format!("{}-{version}-", name.replace('-', "_"))),
                    "{wheel:?}"
                );
                let tags = wheel.file.strip_suffix(".whl").unwrap().rsplit_once('-').unwrap().1;
                assert!(tags.split('.').any(|tag| tag == wheel.tag), "{wheel:?}");
                assert!(wheel.tag.ends_with(if os == "macos" { "arm64" } else { arch }), "{wheel:?}");
                assert_eq!(wheel.sha256.len(), 64, "{wheel:?}");
                assert!(
                    wheel.sha256.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')),
                    "{wheel:?}"
                );
                assert!(wheel.bytes > 0 && !wheel.keep.is_empty(), "{wheel:?}");
            }
        }
    }

    #[test]
    fn no_hash_stands_twice() {
        let mut hashes: Vec<_> =
            [LINUX_X86_64, LINUX_AARCH64, MACOS_ARM64].concat().iter().map(|wheel| wheel.sha256).collect();
        hashes.sort_unstable();
        let all = hashes.len();
        hashes.dedup();
        assert_eq!(hashes.len(), all);
    }

    #[test]
    fn another_platform_is_told_what_to_set() {
        for (os, arch, musl) in
            [("windows", "x86_64", false), ("macos", "x86_64", false), ("linux", "x86_64", true)]
        {
            let error = release(os, arch, musl).unwrap_err().to_string();
            assert!(error.contains(os) && error.contains("set LIBTORCH"), "{error}");
            assert!(error.contains("LIBTORCH_USE_PYTORCH=1"), "{error}");
        }
    }
}
