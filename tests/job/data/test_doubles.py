from konvoi.job.data.doubles import digest, without_doubles


def test_fields_cannot_run_into_each_other():
    assert digest(b"ab", b"c") != digest(b"a", b"bc") != digest(b"abc")


def test_what_is_also_in_a_later_part_leaves_the_earlier_one():
    rows, counts = without_doubles({"train": list("aabcd"), "val": list("cxx"), "test": list("dx")})
    assert {name: these.tolist() for name, these in rows.items()} == {"train": [0, 1, 2], "val": [0], "test": [0, 1]}
    assert counts == {
        "left_out_of_train": 2,
        "inside_train": 1,
        "left_out_of_val": 2,
        "inside_val": 0,
        "left_out_of_test": 0,
        "inside_test": 0,
    }
