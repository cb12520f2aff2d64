"""One module per protocol on the wire: what a request says, what a stream says, what an error looks like.

Nothing here knows what an exchange is, nor which upstream is asked.
"""
