"""The admin plane of capi, mounted at /admin by the composition root."""
