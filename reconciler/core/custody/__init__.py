"""Where keys and secrets are kept: their paths, who may reach them, what Vault should hold."""
