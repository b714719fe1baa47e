"""What people and programs are shown: values in, text or JSON out. Pure."""
