//! The replicated `Kv` over openraft. Nothing is built here yet: `keelson_store::LocalKv` serves one member meanwhile.
