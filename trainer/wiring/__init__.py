"""The only room that names every adapter: settings in, a working service out."""
