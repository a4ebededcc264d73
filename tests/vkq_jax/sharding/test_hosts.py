"""Arrays of one host; those of several are in tests/sharding."""

import jax.numpy as jnp
import numpy as np

from vkq_jax.sharding.hosts import of_first_host, spans_hosts, to_host


def test_one_host_has_all_of_an_array():
    own, numpys = jnp.arange(3), np.arange(3)
    assert not spans_hosts((own, numpys, None))
    assert to_host(numpys) is numpys
    assert isinstance(to_host(own), np.ndarray)
    np.testing.assert_array_equal(to_host(own), numpys)
    tree = {"x": own}
    assert of_first_host(tree) is tree
