"""Training and measuring, offline; imports only masks, network, refine, formats, config and errors of bpr_service."""
