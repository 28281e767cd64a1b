//! Generates the types of proto/loom/v1.

#[expect(
    clippy::disallowed_methods,
    reason = "cargo says by it where this is built"
)]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Where it is built now: a target directory may have come from elsewhere.
    let root = std::env::var("CARGO_MANIFEST_DIR")? + "/../../proto";
    let files = ["loom/v1/envelope.proto", "loom/v1/frame.proto"];
    for file in files {
        println!("cargo::rerun-if-changed={root}/{file}");
    }
    let set = protox::compile(files, [&root])?;
    prost_build::Config::new()
        .bytes(["."])
        .btree_map(["."])
        .compile_fds(set)?;
    Ok(())
}
