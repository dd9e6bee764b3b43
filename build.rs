//! Lists the SAEs under `assets/tiny-scope-res`, so that the embedded default follows what the training tool writes there.

use std::{env, error::Error, fmt::Write as _, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let assets = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("assets");
    let release = "tiny-scope-res";
    let mut table = String::from("&[\n");
    for path in params_files(&assets.join(release))? {
        let id = path.strip_prefix(assets.join(release))?.parent().unwrap_or(Path::new("")).to_path_buf();
        writeln!(table, "    (\"tiny/{}\", include_bytes!({path:?})),", id.display())?;
    }
    table.push(']');
    fs::write(Path::new(&env::var("OUT_DIR")?).join("tiny_saes.rs"), table)?;
    println!("cargo::rerun-if-changed=assets");
    Ok(())
}

/// Every `params.npz` below a folder, sorted.
fn params_files(folder: &Path) -> Result<Vec<std::path::PathBuf>, Box<dyn Error>> {
    let mut files = Vec::new();
    let mut entries =
        fs::read_dir(folder)?.map(|e| Ok(e?.path())).collect::<Result<Vec<_>, std::io::Error>>()?;
    entries.sort();
    for path in entries {
        if path.is_dir() {
            files.extend(params_files(&path)?);
        } else if path.file_name().is_some_and(|n| n == "params.npz") {
            files.push(path);
        }
    }
    Ok(files)
}
