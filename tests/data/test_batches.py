import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning import LightningModule, Trainer
from PIL import Image

from anytime.data import Batches, Digits, ImageFolder, LazyImages, Split, StreamedBatches
from anytime.data.augment import crop_and_flip


def numbered(size: int, **options) -> Batches:
    """A loader whose targets are the indices of its samples."""
    images = torch.randint(0, 256, (size, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Batches(images, torch.arange(size), options.pop("batch_size", 4), augment=crop_and_flip(2, True), **options)


class Striped:
    """Image number n has red = n in its left half."""

    def __call__(self, row: int) -> Image.Image:
        image = Image.new("RGB", (40, 30))
        image.paste((row, 0, 0), (0, 0, 20, 30))
        return image


def streamed(size: int, **options) -> StreamedBatches:
    files = LazyImages(Striped(), torch.arange(size))
    batch_size = options.pop("batch_size", 4)
    return StreamedBatches(files, torch.arange(size), batch_size, (3, 8, 8), crop=True, flip=True, **options)


def assert_same(batches, others):
    batches, others = list(batches), list(others)
    assert len(batches) == len(others)
    for (images, targets), (other_images, other_targets) in zip(batches, others, strict=True):
        assert torch.equal(targets, other_targets)
        assert torch.equal(images, other_images)


both = pytest.mark.parametrize("make", [numbered, streamed])


@both
def test_gives_float_images_between_0_and_1(make):
    images, targets = next(iter(make(10, shuffle=True)))
    assert images.dtype == torch.float32
    assert images.shape == (4, 3, 8, 8)
    assert 0 <= images.min() < images.max() <= 1
    assert targets.dtype == torch.int64


@both
def test_training_is_a_function_of_seed_and_epoch(make):
    loader = make(10, shuffle=True)
    first, second = list(loader), list(loader)
    assert not torch.equal(first[0][1], second[0][1])
    loader.set_epoch(0)
    assert_same(loader, first)
    other = make(10, shuffle=True)
    other.set_epoch(1)
    torch.manual_seed(123)
    assert_same(other, second)
    assert not torch.equal(next(iter(make(10, shuffle=True, seed=1)))[1], first[0][1])


@both
def test_loading_does_not_advance_the_global_random_stream(make):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(make(10, shuffle=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_training_drops_the_incomplete_batch_unless_it_is_the_only_one():
    assert [len(targets) for _, targets in numbered(11, shuffle=True)] == [4, 4]
    assert [len(targets) for _, targets in numbered(3, shuffle=True)] == [3]


def test_evaluation_keeps_every_sample_in_order():
    loader = numbered(11)
    for _ in range(2):
        assert torch.cat([targets for _, targets in loader]).tolist() == list(range(11))
    assert len(loader) == 3


@both
@pytest.mark.parametrize("stop", [0, 1, 2, 3])
def test_resumes_in_the_middle_of_an_epoch(make, stop):
    loader = make(16, shuffle=True)
    loader.set_epoch(3)
    iterator = iter(loader)
    yielded = [next(iterator) for _ in range(stop)]
    state = loader.state_dict()
    assert state == {"epoch": 3, "batch": stop}
    rest = list(iterator)

    resumed = make(16, shuffle=True)
    resumed.load_state_dict(state)
    iterator = iter(resumed)  # Lightning creates the iterator before it sets the epoch
    resumed.set_epoch(3)
    assert_same(iterator, rest)
    resumed.set_epoch(3)
    assert_same(resumed, yielded + rest)  # only the first iteration resumes


def test_a_finished_epoch_is_followed_by_the_next():
    loader, resumed = numbered(8, shuffle=True), numbered(8, shuffle=True)
    list(loader)
    resumed.load_state_dict(loader.state_dict())
    assert_same(resumed, loader)
    assert resumed.state_dict() == {"epoch": 1, "batch": 2}


def test_an_abandoned_epoch_starts_again():
    loader = numbered(16, shuffle=True)
    first = next(iter(loader))
    assert_same([next(iter(loader))], [first])


def test_a_loaded_position_is_forgotten_in_another_epoch():
    loader = numbered(16, shuffle=True)
    loader.load_state_dict({"epoch": 0, "batch": 3})
    loader.set_epoch(1)
    assert len(list(loader)) == 4


@both
def test_two_processes_share_the_batches_of_one(make):
    whole = list(make(22, shuffle=True, batch_size=8))
    shares = [list(make(22, shuffle=True, batch_size=4, rank=rank, world_size=2)) for rank in range(2)]
    joined = [tuple(map(torch.cat, zip(*pair, strict=True))) for pair in zip(*shares, strict=True)]
    assert_same(joined, whole)


@given(size=st.integers(1, 60), batch_size=st.integers(1, 9), world_size=st.integers(1, 5), shuffle=st.booleans())
@settings(max_examples=50, deadline=None)
def test_sharding_neither_loses_nor_duplicates_samples(size, batch_size, world_size, shuffle):
    if shuffle and size < world_size:
        with pytest.raises(ValueError, match="cannot be shared"):
            numbered(size, shuffle=True, world_size=world_size)
        return
    options = {"batch_size": batch_size, "shuffle": shuffle, "world_size": world_size}
    loaders = [numbered(size, rank=rank, **options) for rank in range(world_size)]
    batches = [list(loader) for loader in loaders]
    assert [len(loader) for loader in loaders] == [len(b) for b in batches]
    seen = sorted(t for b in batches for _, targets in b for t in targets.tolist())
    assert len(set(seen)) == len(seen)
    if shuffle:
        assert len({len(b) for b in batches}) == 1
        assert len(seen) == (size // (batch_size * world_size) * batch_size * world_size or size)
    else:
        assert seen == list(range(size))
    assert all(b and all(len(targets) <= batch_size for _, targets in b) for b in batches)
    assert all(len(targets) for b in batches for _, targets in b if len(b) > 1 or size >= world_size)


@both
def test_a_process_without_a_sample_gets_one_empty_batch(make):
    loader = make(1, rank=1, world_size=2)
    ((images, targets),) = list(loader)
    (whole,) = list(make(1, rank=0, world_size=2))
    assert len(loader) == 1
    assert images.shape == (0, *whole[0].shape[1:])
    assert (images.dtype, targets.dtype, targets.shape) == (whole[0].dtype, whole[1].dtype, (0,))


def test_workers_change_nothing():
    assert_same(streamed(12, shuffle=True, workers=2), streamed(12, shuffle=True))


def test_streamed_evaluation_is_the_centre_of_the_resized_image():
    loader = StreamedBatches(LazyImages(Striped(), torch.arange(200, 204)), torch.arange(4), 4, (3, 8, 8))
    images, _ = next(iter(loader))
    assert torch.allclose(images[:, 0, :, 0] * 255, torch.arange(200.0, 204)[:, None].expand(4, 8))
    assert images[:, :, :, -1].max() == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_devices_give_the_same_batches():
    cpu = numbered(50, shuffle=True)
    gpu = Batches(cpu.images.cuda(), cpu.targets.cuda(), 4, shuffle=True, augment=cpu.augment)
    assert_same(((images.cpu(), targets.cpu()) for images, targets in gpu), cpu)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3, 4, 4), torch.zeros(2), 1), "uint8"),
        ((torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3), 1), "2 images but 3 targets"),
        ((torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2), 0), "batch_size must be at least 1, got 0"),
        ((torch.zeros(0, 3, 4, 4, dtype=torch.uint8), torch.zeros(0), 1), "at least one sample"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Batches(*arguments)


class Recorder(LightningModule):
    """Records its batches, and saves a checkpoint after `save_after` of them."""

    def __init__(self, path, save_after: int = 0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.path, self.save_after = path, save_after
        self.seen: list[tuple[int, float, list[int]]] = []

    def on_train_epoch_start(self) -> None:
        self.trainer.train_dataloader.set_epoch(self.current_epoch)

    def training_step(self, batch, index):
        self.seen.append((self.current_epoch, float(batch[0].sum()), batch[1].tolist()))
        return self.weight * 0

    def on_train_batch_end(self, *arguments) -> None:
        if self.global_step == self.save_after:
            self.trainer.save_checkpoint(self.path)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")  # Lightning warns about workers, loggers and its own use of torch
@pytest.mark.parametrize("save_after", [1, 3, 4, 6])
def test_lightning_resumes_in_the_middle_of_an_epoch(tmp_path, save_after):
    def train(module: Recorder, checkpoint=None) -> list:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = Trainer(max_epochs=2, accelerator="cpu", enable_checkpointing=False, **quiet)
        data = Digits(limit=256, batch_size=64, validation=0)  # 4 batches an epoch
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
        return module.seen

    path = tmp_path / "last.ckpt"
    whole = train(Recorder(path, save_after))
    assert [epoch for epoch, _, _ in whole] == [0] * 4 + [1] * 4
    assert train(Recorder(path), path) == whole[save_after:]


class Damaged:
    """Image number 2 cannot be read."""

    def __call__(self, row: int) -> Image.Image:
        if row == 2:
            raise ValueError("row 2: not an image")
        return Image.new("RGB", (8, 8))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_reported_in_one_sentence_by_any_process(workers):
    loader = StreamedBatches(LazyImages(Damaged(), torch.arange(4)), torch.arange(4), 2, (3, 8, 8), workers=workers)
    batches = iter(loader)
    assert len(next(batches)[1]) == 2
    with pytest.raises(ValueError, match=r"^row 2: not an image$"):
        next(batches)


def test_alternating_flips_show_both_sides_of_every_image_in_two_epochs():
    images = torch.randint(0, 256, (400, 3, 4, 4), dtype=torch.uint8)
    loader = Batches(images, torch.arange(400), 100, shuffle=True, seed=3, alternate=True)
    flipped = []
    for _ in range(4):
        seen = {n: image for batch, numbers in loader for image, n in zip(batch, numbers.tolist(), strict=True)}
        flipped.append([torch.equal(seen[n].mul(255).round().to(torch.uint8), images[n].flip(-1)) for n in range(400)])
    first, second = flipped[:2]
    assert all(one != other for one, other in zip(first, second, strict=True))
    assert 150 < sum(first) < 250
    assert flipped[2:] == [first, second]


class Ramp32(Digits):
    """Images whose pixels hold their column, so that a crop shows its offset."""

    input_size = (1, 32, 32)
    official = None

    def read(self, split: str) -> Split:
        images = torch.arange(32, dtype=torch.uint8).expand(20, 1, 32, 32).contiguous()
        return Split(images, torch.arange(20) % 10, split)


def test_crop_pixels_bound_the_offset_of_the_crop():
    data = Ramp32(augment="crop", crop_pixels=2, crop_padding="reflect", validation=0, batch_size=20)
    data.setup("fit")
    loader = data.train_dataloader()
    offsets = {round(x) for _ in range(20) for batch, _ in loader for x in (batch[:, 0, 5, 10] * 255).tolist()}
    assert offsets == {8, 9, 10, 11, 12}


def test_alternating_flips_of_a_data_set():
    data = Ramp32(augment="flip", flip="alternating", validation=0, batch_size=20)
    data.setup("fit")
    loader = data.train_dataloader()
    sides = [{n: int(batch[n, 0, 0, 0] > 0) for batch, _ in loader for n in range(20)} for _ in range(2)]
    assert sorted(sides[0].values()) == sorted(1 - side for side in sides[1].values())


def test_streamed_sets_name_the_argument_they_cannot_take(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "train" / name / f"{number}.png")
    data = ImageFolder(root=tmp_path, flip="alternating", validation=0)
    data.setup("fit")
    with pytest.raises(ValueError, match="ImageFolder is read image by image: flip is for sets in memory"):
        data.train_dataloader()
    with pytest.raises(ValueError, match=r"unknown flip 'both'; valid: random, alternating"):
        Digits(flip="both")
    with pytest.raises(ValueError, match="crop_pixels must be at least 1, got 0"):
        Digits(crop_pixels=0)
