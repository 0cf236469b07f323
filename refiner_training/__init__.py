"""Training and measuring, offline; imports only the core, formats, config and errors of bpr_service."""
