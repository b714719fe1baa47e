"""What passes and server do about keys, secrets and their custody, beside looking at them."""
