"""The Updater: a chain bound to a model. The one room that sees both the law and the weights."""

from gradchain.updater.group import Group as Group
from gradchain.updater.group import group as group
from gradchain.updater.info import UpdateInfo as UpdateInfo
from gradchain.updater.state_dict import LoadReport as LoadReport
from gradchain.updater.updater import Updater as Updater

__all__ = ["Group", "LoadReport", "UpdateInfo", "Updater", "group"]
