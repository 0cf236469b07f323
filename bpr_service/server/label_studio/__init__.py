"""Label Studio's protocol: its routes, and its way of writing brush masks."""
