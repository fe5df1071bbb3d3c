"""Which images are held out: a property of each image, and a record of the run."""

import gc
import shutil
import warnings
from types import FunctionType, ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file

from anytime.data import CUB200, GTSRB, Digits, ImageData, ImageFolder, Split
from anytime.data.names import Names, lots
from anytime.data.record import RECORD, ImageRecord, replace_record
from anytime.support.owned import NotOurs


def write_images(folder, classes="ab", number=30, seed=0):
    generator = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(number):
            Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(folder / name / f"{i:03d}.png")
    return folder


def new_image(path, seed=99):
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(path)


def names(data, part):
    return list(data.split(part).names)


def warned(act):
    """What `act` returns, and its warnings as one text."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return act(), "\n".join(str(warning.message) for warning in caught)


def folder(root, **arguments):
    return ImageFolder(root=root, size=8, **arguments)


def test_names_are_strings_in_one_array():
    given = ["a", "", "b/é.png", "b/\udcff.png"]
    held = Names.of(given)
    assert list(held) == given
    assert held[2] == given[2]
    assert list(held.select(torch.tensor([3, 0]))) == [given[3], "a"]
    assert held.select(torch.tensor([1])).text.data_ptr() == held.text.data_ptr()
    assert len(Names.of([])) == 0


def test_lots_are_uniform_and_differ_by_seed_and_part():
    given = [f"{i}.png" for i in range(5000)]
    first = lots(given, 0, "test")
    assert torch.histc(first, 10, 0, 1).tolist() == pytest.approx([500] * 10, abs=100)
    assert lots(given[7:8], 0, "test") == first[7]
    for other in (lots(given, 1, "test"), lots(given, 0, "validation")):
        assert abs(torch.corrcoef(torch.stack([first, other]))[0, 1]) < 0.05
    assert torch.equal(lots(["e\u0301"], 0, "test"), lots(["\u00e9"], 0, "test"))


@pytest.mark.parametrize("change", ["added first", "removed", "renamed"])
def test_a_file_moves_no_other_one(tmp_path, change):
    write_images(tmp_path, number=60)
    before = {part: set(names(folder(tmp_path), part)) for part in ("train", "validation", "test")}
    if change == "added first":
        for i in range(5):
            new_image(tmp_path / f"a/!{i}.png", i)
    elif change == "removed":
        for i in range(5):
            (tmp_path / f"a/{i:03d}.png").unlink()
    else:
        for i in range(5):
            (tmp_path / f"a/{i:03d}.png").rename(tmp_path / f"a/new{i}.png")
    after = {part: set(names(folder(tmp_path), part)) for part in before}
    everything = set.union(*after.values())
    for part in before:
        assert before[part] & everything == after[part] & set.union(*before.values())
    assert sum(map(len, after.values())) == len(everything)


def test_the_share_is_met_about_and_a_number_exactly(tmp_path):
    write_images(tmp_path, number=150)
    assert len(folder(tmp_path).split("test")) == pytest.approx(60, abs=25)
    exact = folder(tmp_path, test=10, validation=20)
    assert torch.bincount(exact.split("test").labels).tolist() == [5, 5]
    assert torch.bincount(exact.split("validation").labels).tolist() == [10, 10]


def test_a_class_keeps_an_image_to_train_on(tmp_path):
    write_images(tmp_path, "abcdefghijkl", number=2)
    for seed in range(5):
        data = folder(tmp_path, test=0.6, validation=0.3, split_seed=seed)
        assert data.split("train").labels.unique().tolist() == list(range(12))
        assert len(data.split("test"))


def recorded(tmp_path, **arguments):
    """The record of a run on 60 images, from a file, and its data."""
    data = folder(write_images(tmp_path / "images"), **arguments)
    data.make_record().save(tmp_path / "images.safetensors")
    return ImageRecord.load(tmp_path / "images.safetensors"), data


def with_record(tmp_path, record, **arguments):
    data = folder(tmp_path / "images", **arguments)
    data.use_record(record)
    return data


def test_a_record_reproduces_the_split(tmp_path):
    record, data = recorded(tmp_path, limit=20)
    assert len(record) == 60
    assert (record.count("train"), record.count("unused")) == (20, 60 - 20 - record.count("test") - record.count("validation"))
    again = with_record(tmp_path, record, split_seed=5, test=0.7, limit=20)  # the record takes precedence
    for part in ("train", "validation", "test"):
        assert names(again, part) == names(data, part)


def test_new_missing_and_renamed_files(tmp_path):
    record, data = recorded(tmp_path)
    test, train = names(data, "test"), names(data, "train")
    (tmp_path / "images" / test[0]).rename(tmp_path / "images/a/renamed test.png")
    (tmp_path / "images" / train[0]).rename(tmp_path / "images/a/renamed train.png")
    (tmp_path / "images" / test[1]).unlink()
    lot = {name: float(lots([name], 0, "test")) for name in (f"a/new{i}.png" for i in range(30))}
    new, other = min(lot, key=lot.get), max(lot, key=lot.get)
    new_image(tmp_path / "images" / new)
    new_image(tmp_path / "images" / other, 98)
    again = with_record(tmp_path, record)
    found, said = warned(lambda: set(names(again, "test")))
    assert found == {*test[2:], "a/renamed test.png", new}
    assert f"of the {len(test)} test images of this run: 1 gone, 1 new" in said
    trained, said = warned(lambda: names(again, "train"))
    assert trained == ["a/renamed train.png", *train[1:]]  # in the order of the training


def test_what_was_trained_on_is_left_out_and_counted(tmp_path):
    record, data = recorded(tmp_path)
    train, test = names(data, "train"), set(names(data, "test"))
    for i, name in enumerate(train):
        shutil.copy(tmp_path / "images" / name, tmp_path / f"images/b/copy{i}.png")
    copies = sum(lots([f"b/copy{i}.png" for i in range(len(train))], 0, "test") < 0.2).item()
    assert copies
    again = with_record(tmp_path, record)
    found, said = warned(lambda: set(names(again, "test")))
    assert found == test
    assert f"{copies} of {len(test) + copies} images are left out, because this run was trained on their content" in said


def test_images_moved_from_the_training_folder_to_the_test_folder_are_left_out(tmp_path):
    write_images(tmp_path / "images/train")
    write_images(tmp_path / "images/test", number=5, seed=1)
    data = folder(tmp_path / "images", validation=0)
    record = data.make_record()
    assert "test" not in data.divided
    for i in range(3):
        (tmp_path / f"images/train/a/{i:03d}.png").rename(tmp_path / f"images/test/a/moved{i}.png")
    again = with_record(tmp_path, record, validation=0)
    with pytest.warns(UserWarning, match=r"3 of 13 images are left out, because this run was trained on their content"):
        assert len(again.split("test")) == 10
    with pytest.warns(UserWarning, match="3 of 60 training images of this run are gone"):
        assert len(again.split("train")) == 57


def test_the_images_of_earlier_weights_are_left_out(tmp_path):
    earlier, data = recorded(tmp_path)
    later = folder(tmp_path / "images", split_seed=1)
    record = later.make_record().following(earlier)
    again = with_record(tmp_path, record, split_seed=1)
    shared = set(names(later, "test")) & set(names(data, "train"))
    assert shared
    found, said = warned(lambda: set(names(again, "test")))
    assert found == set(names(later, "test")) - shared
    assert f"{len(shared)} of {len(names(later, 'test'))} images are left out" in said
    assert warned(lambda: names(again, "train"))[0] == names(later, "train")


def test_tracks_are_never_divided(tmp_path):
    class Film(ImageData):
        """Frames of tracks; a number of frames has gone or is new."""

        frames = range(20)
        input_size = (1, 2, 2)

        def read_names(self):
            return [["a", "b"]]

        def read(self, split):
            track = torch.arange(12).repeat_interleave(len(self.frames))
            images = torch.stack(
                [torch.full((1, 2, 2), (7 * t + f) % 256, dtype=torch.uint8) for t in range(12) for f in self.frames]
            )
            file_names = Names.of(f"{t}/{f}" for t in range(12) for f in self.frames)
            return None if split == "validation" else Split(images, track % 2, "film", track, file_names)

    data = Film(validation=0.3)
    held_out = set(data.split("validation").groups.tolist())
    assert held_out
    assert not held_out & set(data.split("train").groups.tolist())
    for amount in (0.3, 50):
        record = Film(validation=amount)
        record = record.make_record()
        again = Film(validation=amount)
        again.frames = range(10, 40)
        again.use_record(record)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert not set(again.split("validation").groups.tolist()) & set(again.split("train").groups.tolist())


def test_images_without_names_are_known_by_their_content():
    class Memory(ImageData):
        images = torch.arange(200, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
        input_size = (1, 2, 2)

        def read_names(self):
            return [["a"]]

        def read(self, split):
            return (
                None
                if split == "validation"
                else Split(self.images, torch.zeros(len(self.images), dtype=torch.int64), "memory")
            )

    data = Memory(validation=0.2)
    held_out = set(data.split("validation").images[:, 0, 0, 0].tolist())
    assert 20 < len(held_out) < 60
    Memory.images = Memory.images[1:]
    assert set(Memory(validation=0.2).split("validation").images[:, 0, 0, 0].tolist()) == held_out - {0}
    again = Memory(validation=0.2)
    again.use_record(data.make_record())
    train = data.split("train").images[:, 0, 0, 0].tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # image 0 is gone
        assert again.split("train").images[:, 0, 0, 0].tolist() == [value for value in train if value]


def test_official_sets_in_one_file_are_split_as_ever():
    held_out = Digits().split("validation")
    assert len(held_out) == 144
    assert torch.equal(held_out.images, Digits(split_by="positions").split("validation").images)
    record = Digits().make_record()
    again = Digits()
    again.use_record(record)
    assert torch.equal(again.split("validation").images, held_out.images)
    assert torch.equal(again.split("train").images, Digits().split("train").images)
    assert len(again.split("test")) == 360


def test_the_files_of_streamed_official_sets_are_not_read_for_the_record(tmp_path):
    bird = tmp_path / "CUB_200_2011"
    (bird / "images").mkdir(parents=True)
    for file, text in {
        "classes.txt": "1 001.Albatross",
        "images.txt": "\n".join(f"{i} {i}.jpg" for i in range(10)),
        "image_class_labels.txt": "\n".join(f"{i} 1" for i in range(10)),
        "train_test_split.txt": "\n".join(f"{i} 1" for i in range(10)),
    }.items():
        (bird / file).write_text(text)
    record = CUB200(root=tmp_path, validation=0.2).make_record()  # there are no images
    assert (record.count("train"), record.count("validation")) == (8, 2)
    assert not record.contents.any()


def test_versions_without_a_record_split_by_positions(tmp_path):
    write_images(tmp_path)
    shutil.copy(tmp_path / "a/000.png", tmp_path / "a/000.jfif")  # a suffix that was not seen then
    data = folder(tmp_path, split_by="positions")
    assert len(data.split("test")) == 12
    assert len(data.split("train")) + len(data.split("validation")) == 48
    with pytest.raises(ValueError, match=r"unknown split_by 'name'; did you mean 'names'\?"):
        folder(tmp_path, split_by="name")


def test_damaged_records(tmp_path):
    record, _ = recorded(tmp_path)
    path = tmp_path / "images.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=r"images\.safetensors is damaged"):
        ImageRecord.load(path)
    tensors = {"text": record.names.text, "ends": record.names.ends, "contents": record.contents, "parts": record.parts}
    for change, message in {
        "parts": (record.parts + 9, "there is no part"),
        "ends": (record.names.ends.flip(0), "do not belong together"),
        "contents": (record.contents[1:], "do not belong together"),
        "text": (record.names.text.long(), "it holds contents, ends, parts, text"),
    }.items():
        save_file(tensors | {change: message[0].contiguous()}, path, metadata={"format": "anytime-images-1"})
        with pytest.raises(ValueError, match=message[1]):
            ImageRecord.load(path)
    save_file(tensors, path, metadata={"format": "other"})
    with pytest.raises(ValueError, match="has format 'other'"):
        ImageRecord.load(path)


def test_a_full_disk_leaves_the_record_and_is_an_error_of_the_system(tmp_path, monkeypatch):
    record, _ = recorded(tmp_path)
    path = tmp_path / "images.safetensors"
    whole = path.read_bytes()

    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("anytime.support.tensor_files.save_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        record.save(path)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == whole


def test_workers_get_no_objects_per_image(tmp_path):
    """A list of paths would be copied into every worker, page by page."""

    def objects(root, number):
        loader = folder(write_images(root, number=number), validation=0, test=0).train_dataloader()
        seen, todo = {}, [loader.images]
        while todo:
            if id(part := todo.pop()) not in seen and not isinstance(part, type | ModuleType | FunctionType):
                seen[id(part)] = part
                todo += gc.get_referents(part)
        return len(seen)

    assert objects(tmp_path / "few", 3) == objects(tmp_path / "many", 30)


def test_tracks_of_traffic_signs_stay_together(tmp_path):
    """Also if some tracks are missing here, which moves no other one."""
    (tmp_path / "gtsrb32").mkdir()

    def held_out(tracks):
        names_ = [f"{track:05d}_{frame:05d}.ppm" for track in tracks for frame in range(4)]
        frames = np.random.default_rng(0).integers(0, 256, (len(names_), 4, 4, 3), dtype=np.uint8)
        arrays = {"images": frames, "labels": np.full(len(frames), 3), "roi": np.tile([0, 0, 1, 1], (len(frames), 1))}
        np.savez(tmp_path / "gtsrb32/train.npz", **arrays, track=names_)
        data = GTSRB(root=tmp_path, validation=0.25, size=4)
        parts = [set(data.split(part).groups.tolist()) for part in ("train", "validation")]
        assert not parts[0] & parts[1]
        assert len(data.split("validation")) % 4 == 0
        return data, parts[1]

    data, chosen = held_out(range(40))
    assert len(chosen) == 10
    record = data.make_record()
    assert (record.count("train"), record.count("validation")) == (120, 40)
    _, fewer = held_out(range(1, 40))
    assert len(fewer ^ chosen) <= 2
    again = GTSRB(root=tmp_path, validation=0.25, size=4)
    again.use_record(record)
    found, _ = warned(lambda: set(again.split("validation").groups.tolist()))
    assert found == chosen - {300_000}


def test_the_record_of_a_folder_is_that_of_the_model_it_holds_now(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        data = ImageFolder(root=write_images(tmp_path / f"images_{name}", seed=seed), size=4)
        data.setup("fit")
        (tmp_path / name).mkdir()
        data.make_record().save(tmp_path / name / RECORD)
    first, second = ((tmp_path / name / RECORD).read_bytes() for name in "ab")
    assert first != second
    (out := tmp_path / "out").mkdir()
    for run, wanted in (("a", first), ("b", second)):
        replace_record(tmp_path / run, out)
        assert (out / RECORD).read_bytes() == wanted
    (tmp_path / "none").mkdir()
    replace_record(tmp_path / "none", out)
    assert not (out / RECORD).exists()
    (out / RECORD).write_text("mine")
    with pytest.raises(NotOurs, match="was not written by this library"):
        replace_record(tmp_path / "a", out)
