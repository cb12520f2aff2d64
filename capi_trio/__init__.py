"""The runtime of capi: hypercorn serves, httpx asks, trio supervises."""
