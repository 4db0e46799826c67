"""smdebug's hook: scripts that were written for it record a run of ours. Without torch until a hook is made."""
