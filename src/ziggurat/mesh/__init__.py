"""Device meshes and sharding: builds a mesh from a config (data, fsdp, context, tensor,
expert, pipeline; ICI and DCN parts) and turns logical axis names into shardings."""
