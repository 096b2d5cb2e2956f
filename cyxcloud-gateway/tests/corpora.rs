//! The fuzz targets' inputs, past crashes among them, hold in every build; `script/fuzz` looks for more.

#[path = "../../fuzz/src/lib.rs"]
mod fuzz;

use std::path::{Path, PathBuf};

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target)
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap_or_else(|error| panic!("{directory:?}: {error}"));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files
}

#[test]
fn every_input_of_the_corpora_holds() {
    for target in fuzz::TARGETS {
        let files = files(&corpus(target.name));
        assert!(files.len() >= (target.seeds)().len(), "{}: inputs are missing", target.name);
        for file in files {
            // Printed when the test fails.
            #[allow(clippy::print_stdout, reason = "which input it was, where one fails")]
            {
                println!("{}", file.display());
            }
            (target.run)(&std::fs::read(&file).expect("readable"));
        }
    }
}

#[test]
fn the_seeds_are_those_that_the_targets_make() {
    for target in fuzz::TARGETS {
        for (number, seed) in (target.seeds)().into_iter().enumerate() {
            let file = corpus(target.name).join(format!("seed-{number:02}"));
            let kept = std::fs::read(&file).unwrap_or_default();
            assert!(
                kept == seed,
                "{file:?} is another: cargo test --test corpora -- --ignored writes them anew"
            );
        }
    }
}

#[test]
#[ignore = "writes the corpora's seeds"]
fn write_seeds() {
    for target in fuzz::TARGETS {
        std::fs::create_dir_all(corpus(target.name)).expect("made");
        for (number, seed) in (target.seeds)().into_iter().enumerate() {
            std::fs::write(corpus(target.name).join(format!("seed-{number:02}")), seed).expect("written");
        }
    }
}
