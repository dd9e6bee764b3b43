use std::sync::OnceLock;

/// Brings CUDA into the process, once. `Err` says why it can't be had.
///
/// The programs are linked against `libtorch_cpu` alone; `libtorch_cuda` registers itself with libtorch when it is loaded.
///
/// # Errors
/// One line: the library is not there or does not load, or it finds no device.
pub fn load_cuda() -> Result<(), String> {
    static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
    LOADED.get_or_init(load).clone()
}

fn load() -> Result<(), String> {
    if tch::Cuda::is_available() {
        return Ok(());
    }
    let name = libloading::library_filename("torch_cuda");
    // SAFETY: the initialisers that run are libtorch's own, of the libtorch that this process already runs, and they are
    // made to run at load time.
    let library = unsafe { libloading::Library::new(&name) };
    match library {
        // It must outlive every tensor: it stays for good.
        Ok(library) => std::mem::forget(library),
        Err(error) => {
            return Err(one_line(&format!(
                "this libtorch has no CUDA, or it is not on the loader's path ({error})"
            )));
        }
    }
    if tch::Cuda::is_available() {
        Ok(())
    } else {
        Err("libtorch_cuda is loaded, but finds no CUDA device".to_owned())
    }
}

fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}
