"""What users write for shards, expanded."""

import pytest

from counterpoint.data.urls import (
    base_name,
    expand_all,
    expand_braces,
    find_shards,
    scheme,
    shown,
    sidecar,
)


def test_braces():
    assert expand_braces("a{08..11}.tar") == ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]
    assert expand_braces("{9..10}") == ["9", "10"]
    assert expand_braces("{2..0}.tar") == ["2.tar", "1.tar", "0.tar"]
    assert expand_braces("{10..08}") == ["10", "09", "08"]
    assert expand_braces("{7..7}") == ["7"]
    assert expand_braces("{x,y}/{0..1}") == ["x/0", "x/1", "y/0", "y/1"]
    assert expand_braces("plain{.tar") == ["plain{.tar"]


@pytest.mark.parametrize(
    ("url", "kind", "name", "statistics"),
    [
        ("/a/0.tar", "", "0.tar", "/a/0_stats.json"),
        ("s3://b/x/0.tar", "s3", "0.tar", "s3://b/x/0_stats.json"),
        ("https://h/x/0.tar?sig=/a.b", "https", "0.tar", "https://h/x/0_stats.json?sig=/a.b"),
        ("file:///a/0.tar", "", "0.tar", "file:///a/0_stats.json"),
        ("pipe:cat 0.tar", "pipe", "pipe:cat 0.tar", "pipe:cat 0_stats.json"),
    ],
)
def test_parts_of_an_address(url, kind, name, statistics):
    assert (scheme(url), base_name(url), sidecar(url)) == (kind, name, statistics)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://user:secret@h.org/a.tar", "https://h.org/a.tar"),
        ("https://token@h.org:80/a@b.tar?sig=secret", "https://h.org:80/a@b.tar"),
        ("https://h.org/a.tar?mail=a@b", "https://h.org/a.tar"),
        ("s3://key:se@cret@bucket/a.tar", "s3://bucket/a.tar"),
        ("abfs://container@account/a.tar?secret", "abfs://container@account/a.tar"),
        ("hf://datasets/a/b@main/0.tar", "hf://datasets/a/b@main/0.tar"),
        ("pipe:curl 'https://u:p@h/0.tar?sig=s' | cat", "pipe:curl 'https://h/0.tar | cat"),
        ("/a/b?c://d@e.tar", "/a/b?c://d@e.tar"),
    ],
)
def test_messages_hold_no_password(url, told):
    assert shown(url) == told


def test_remote_shards_need_no_listing_but_folders_and_globs_do():
    asked = []

    def listing(pattern):
        asked.append(pattern)
        return {"s3://b/x/1.tar": 10, "s3://b/x/2.tar": 20}

    urls = ["s3://b/x/{0..1}.tar", "https://h/0.tar?a*[b", "s3://b/x/"]
    assert find_shards(urls, listing) == {
        "s3://b/x/0.tar": 0,
        "s3://b/x/1.tar": 0,
        "https://h/0.tar?a*[b": 0,
        "s3://b/x/2.tar": 20,
    }
    assert asked == ["s3://b/x/*.tar"]
    with pytest.raises(ValueError, match=r"no shard found for 'https://h/0\*.tar'; check"):
        find_shards(["https://u:p@h/0*.tar?sig"], lambda pattern: {})
    with pytest.raises(ValueError, match=r"'s3://b/x/' is not on this machine; name each"):
        expand_all(["s3://k:p@b/x/"])


def test_lists_hold_what_the_command_line_takes(shards, tmp_path):
    (tmp_path / "list.txt").write_text(
        f"# mine\n{tmp_path}/{{00000..00001}}.tar\n\nfile://{shards[2]}\n"
    )
    assert expand_all([f"@{tmp_path}/list.txt"]) == shards
