"""The pages for people. Every write is a post from a form of ours that ends in a redirect; reading changes nothing."""
